"""Bad input: exit status 2, one message that names the fix, no traceback, nothing written.

The messages are golden: PRUNECLI_GOLDEN=write makes them anew.
"""

from __future__ import annotations

import fnmatch
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from prunecli.cli.app import app

GOLDEN = Path(__file__).parent / "golden"


class Exploit:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch executed",))


def _state(classes: int = 10) -> dict[str, torch.Tensor]:
    from prunecli.arch.registry import build
    from prunecli.arch.spec import parse

    return build(parse(f"cifar_resnet20?num_classes={classes}")).state_dict()


def _files(folder: Path) -> None:
    """Everything the cases refer to."""
    torch.save(_state(), folder / "good.pt")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("these are no weights\n")
    whole = (folder / "good.pt").read_bytes()
    (folder / "torn.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": Exploit()}, folder / "exploit.pt")
    torch.save({"weights": Exploit()}, folder / "exploit-legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(folder / "script.pt"))
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), folder / "program.pt2")
    (folder / "huge.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    (folder / "bad-header.safetensors").write_bytes(struct.pack("<Q", 16) + b'{"a": [1, 2, 3]}')
    torch.save({"epoch": 3, "loss": 0.5}, folder / "no-weights.pt")
    torch.save({"optimizer": {"lr": 1}, "state_dict": _state()}, folder / "nested.pt")
    torch.save({"a.weight": torch.zeros(3, 3)}, folder / "unknown.pt")
    state = _state()
    state["linear.weight"] = torch.zeros(10, 63)
    torch.save(state, folder / "wrong-shape.pt")
    (folder / "net.py").write_text(
        "import torch\ndef build(): return 3\n"
        "def broken(): raise RuntimeError('no')\ndef leaves(): raise SystemExit(3)\n"
        "def lazy(): return torch.nn.LazyLinear(3)\n"
    )
    (folder / "frozen.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    )
    (folder / "moody.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n"
        "    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 10))\n"
        "class Moody(Net):\n    def forward(self, x):\n        if self.training: raise KeyError('targets')\n"
        "        return super().forward(x)\n"
        "class Flat(Net):\n    def forward(self, x): return super().forward(x).detach()\n"
    )
    (folder / "taylor.yaml").write_text("version: 1\nmethod: {name: taylor}\nbudget: {flops: 0.5}\ndata: digits\n")
    (folder / "typo.yaml").write_text(
        "version: 1\nmethod:\n  name: magnitude\n  p_norm: 2\nbudget:\n  flops: 1.5\n  paramz: 0.5\n"
    )
    (folder / "not.yaml").write_text("version: [1\n")
    (folder / "type.yaml").write_text(
        "version: 1\nmethod: {name: magnitude}\nbudget: {flops: 0.5}\ntrain: {epochs: many}\n"
    )
    (folder / "method.yaml").write_text("version: 1\nmethod: {name: magnitud}\nbudget: {flops: 0.5}\n")
    (folder / "nobudget.yaml").write_text("version: 1\nmethod: {name: magnitude}\n")
    (folder / "sparse.yaml").write_text(
        "version: 1\nmethod: {name: magnitude, structure: weight}\nbudget: {flops: 0.5}\n"
    )
    (folder / "twice.yaml").write_text("version: 1\nmethod: {name: none}\nstrip:\n  round_to: 8\n  round_to: 1\n")
    (folder / "deep.yaml").write_text("[" * 5000)
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "images").mkdir()
    (folder / "readonly").mkdir()


CASES: dict[str, list[str]] = {
    "missing-file": ["analyze", "goud.pt"],
    "empty-file": ["analyze", "empty.pt"],
    "text-file": ["analyze", "text.pt"],
    "truncated-zip": ["analyze", "torn.pt"],
    "pickle-that-executes": ["analyze", "exploit.pt"],
    "legacy-pickle-that-executes": ["analyze", "exploit-legacy.pt"],
    "pickled-module": ["analyze", "module.pt"],
    "torchscript": ["analyze", "script.pt"],
    "exported-program": ["analyze", "program.pt2"],
    "oversized-header": ["analyze", "huge.safetensors"],
    "bad-header": ["analyze", "bad-header.safetensors"],
    "no-weights": ["analyze", "no-weights.pt"],
    "wrong-key": ["analyze", "nested.pt", "--key", "model"],
    "folder-without-config": ["analyze", "images"],
    "unknown-arch": ["analyze", "good.pt", "--arch", "torchvision:resnet19"],
    "wrong-arch": ["analyze", "good.pt", "--arch", "cifar_resnet32"],
    "arch-option": ["analyze", "torchvision:resnet18?classes=3"],
    "no-arch-grammar": ["analyze", "good.pt", "--arch", "net.py:"],
    "arch-returns-no-module": ["analyze", "good.pt", "--arch", "net.py:build"],
    "arch-fails": ["analyze", "good.pt", "--arch", "net.py:broken"],
    "arch-lazy": ["analyze", "good.pt", "--arch", "net.py:lazy"],
    "lazy": ["analyze", "net.py:lazy", "--input", "1x8:int64"],
    "arch-leaves": ["analyze", "good.pt", "--arch", "net.py:leaves"],
    "arch-no-function": ["analyze", "good.pt", "--arch", "net.py:make"],
    "shape-mismatch": ["analyze", "wrong-shape.pt", "--arch", "cifar_resnet20"],
    "prune-without-arch": ["prune", "unknown.pt", "--recipe", "strip", "-o", "out.safetensors"],
    "bad-input-shape": ["analyze", "good.pt", "--input", "3,32,32"],
    "bad-check": ["analyze", "good.pt", "--check", "flop<=2"],
    "unknown-layer": ["analyze", "good.pt", "--why", "layer1.0.conv3"],
    "unknown-data": ["analyze", "good.pt", "--data", "cifar11"],
    "missing-data": ["analyze", "good.pt", "--data", "folder:nowhere"],
    "folder-without-splits": ["analyze", "good.pt", "--data", "folder:images"],
    "wrong-image-size": ["analyze", "good.pt", "--data", "digits"],
    "wrong-classes": ["analyze", "digits_net?num_classes=7", "--data", "digits"],
    "no-recipe": ["prune", "good.pt"],
    "cannot-be-trained": [
        "prune", "moody.py:Moody", "--recipe", "str90", "--data", "digits", "--input", "1x1x8x8", "-q", "-o", "o.st",
    ],
    "has-no-gradients": [
        "prune", "moody.py:Flat", "--recipe", "taylor.yaml", "--input", "1x1x8x8", "-q", "-o", "o.st",
    ],
    "unknown-recipe": ["prune", "good.pt", "--recipe", "magnitude-flop50"],
    "recipe-with-three-problems": ["prune", "good.pt", "--recipe", "typo.yaml"],
    "recipe-no-yaml": ["prune", "good.pt", "--recipe", "not.yaml"],
    "recipe-key-twice": ["prune", "good.pt", "--recipe", "twice.yaml"],
    "recipe-too-deep": ["prune", "good.pt", "--recipe", "deep.yaml"],
    "recipe-wrong-type": ["prune", "good.pt", "--recipe", "type.yaml"],
    "recipe-unknown-method": ["prune", "good.pt", "--recipe", "method.yaml"],
    "recipe-without-budget": ["prune", "good.pt", "--recipe", "nobudget.yaml"],
    "recipe-budget-of-other-structure": ["prune", "good.pt", "--recipe", "sparse.yaml"],
    "milestones-in-epochs": ["prune", "good.pt", "--recipe", "strip", "--set", "train.milestones=[30, 60]"],
    "bad-set": ["prune", "good.pt", "--recipe", "strip", "--set", "method.lr"],
    "bad-budget": ["prune", "good.pt", "--recipe", "magnitude-flops50", "--set", "budget.flops=-1"],
    "impossible-budget": ["prune", "good.pt", "--recipe", "magnitude-flops50", "--set", "budget.flops=0.001"],
    "no-prunable-channel": ["prune", "frozen.py:build", "--input", "1x3x2x2", "--recipe", "magnitude-flops50"],
    "exclude-matches-nothing": [
        "prune", "good.pt", "--recipe", "magnitude-flops50", "--set", "method.exclude=[layer9]",
    ],
    "train-without-data": ["prune", "good.pt", "--recipe", "quickstart", "--set", "data=null"],
    "output-folder-missing": ["prune", "good.pt", "--recipe", "magnitude-flops50", "-o", "nowhere/out.safetensors"],
    "output-is-folder": ["prune", "good.pt", "--recipe", "magnitude-flops50", "-o", "images"],
    "output-over-input": ["prune", "good.pt", "--recipe", "magnitude-flops50", "-o", "good.pt"],
    "output-is-no-file": ["prune", "good.pt", "--recipe", "magnitude-flops50", "-o", "pipe.safetensors"],
    "output-of-another-format": ["finetune", "good.pt", "--data", "digits", "-o", "out.onnx"],
    "unknown-suffix": ["export", "good.pt", "-o", "out.tflite"],
    "unknown-device": [
        "finetune", "digits_net", "--data", "digits", "-o", "out.safetensors", "--set", "train.device=tpu9",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bad")
    _files(place)
    return place


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], object]:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    return lambda arguments: CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, folder: Path, run: Callable[[list[str]], object]) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    result = run(CASES[name])
    message = "".join(line for line in result.stderr.splitlines(keepends=True) if not line.startswith("note: "))
    assert result.exit_code == 2, message
    assert result.stdout == ""
    assert "Traceback" not in message
    assert message.startswith("error: ")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    golden = GOLDEN / f"{name}.txt"
    if golden.exists() and fnmatch.fnmatchcase(message, golden.read_text()):  # * stands for what a library says
        return
    if os.environ.get("PRUNECLI_GOLDEN") == "write":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(message)
    assert message == golden.read_text()


def test_ambiguous_architecture(
    folder: Path, run: Callable[[list[str]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two architectures of one source with the same names and shapes: the user has to choose."""
    from prunecli.arch import guess, registry

    monkeypatch.setitem(registry.BUILTIN, "twin_of_resnet20", registry.BUILTIN["cifar_resnet20"])
    monkeypatch.setattr(guess, "BUILTIN", registry.BUILTIN)
    result = run(["analyze", "good.pt", "--data", "digits"])
    assert result.exit_code == 2
    assert "fits cifar_resnet20 and twin_of_resnet20" in result.stderr
    assert "--arch" in result.stderr


def test_unwritable_output(folder: Path, run: Callable[[list[str]], object]) -> None:
    if os.geteuid() == 0:
        output = "/proc/out.safetensors"  # even root cannot create files there
    else:
        (folder / "readonly").chmod(0o500)
        output = "readonly/out.safetensors"
    result = run(["prune", "good.pt", "--recipe", "magnitude-flops50", "-o", output])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(("error: ", "try: "))


def test_json_reports_failures_as_one_document(folder: Path, run: Callable[[list[str]], object]) -> None:
    result = run(["analyze", "empty.pt", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["exit_status"] == 2


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(
    number: float, folder: Path, tmp_path: Path, run: Callable[[list[str]], object]
) -> None:
    state = _state()
    state["layer2.0.conv1.weight"][3] = number
    torch.save(state, tmp_path / "diverged.pt")
    output = tmp_path / "out.safetensors"
    result = run(["prune", str(tmp_path / "diverged.pt"), "--recipe", "magnitude-flops50", "-o", str(output)])
    assert result.exit_code == 1
    assert "layer2.0.conv1.weight holds numbers that are not finite" in result.stderr
    assert not output.exists()


def test_an_input_that_fits_into_no_memory(run: Callable[[list[str]], object]) -> None:
    result = run(["analyze", "cifar_resnet20", "--input", "1x3x9999999x9999999"])
    assert result.exit_code == 1
    assert "error: out of memory" in result.stderr
