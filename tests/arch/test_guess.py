"""The architecture is told from names and shapes alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.arch.registry import BUILTIN, build, skeleton
from prunecli.arch.spec import parse
from prunecli.errors import ArchError
from prunecli.inputs import Argument
from prunecli.model import Opening, open_model
from prunecli.pipeline.analyze import analyze

NESTS = {
    "plain": lambda state: state,
    "nested": lambda state: {"state_dict": state, "epoch": 1},
    "data-parallel": lambda state: {"model": {f"module.{n}": t for n, t in state.items()}},
    "compiled-ema": lambda state: {"model_ema": {f"_orig_mod.model.{n}": t for n, t in state.items()}},
}


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_torchvision_with_ten_classes(name: str, nest: str, tmp_path: Path) -> None:
    state = build(parse(f"torchvision:{name}?num_classes=10")).state_dict()
    torch.save(NESTS[nest](state), tmp_path / "m.pt")
    model = open_model(str(tmp_path / "m.pt"))
    assert str(model.arch) == f"torchvision:{name}?num_classes=10"
    assert model.inputs == (Argument((1, 3, 224, 224)),)
    assert all(torch.equal(model.module.state_dict()[n], t) for n, t in state.items())


@pytest.mark.parametrize("name", [n for n in BUILTIN if n not in ("cifar_wrn28_10", "conv2")])
def test_every_built_in_network(name: str, tmp_path: Path) -> None:
    torch.save(build(parse(f"{name}?num_classes=7")).state_dict(), tmp_path / "m.pt")
    model = open_model(str(tmp_path / "m.pt"))
    assert str(model.arch) == f"{name}?num_classes=7"
    assert model.inputs == (Argument(BUILTIN[name][1]),)


def test_a_warm_guess_takes_under_a_second(tmp_path: Path) -> None:
    torch.save(build(parse("torchvision:resnet18")).state_dict(), tmp_path / "m.pt")
    open_model(str(tmp_path / "m.pt"))
    started = time.process_time()
    open_model(str(tmp_path / "m.pt"))
    assert time.process_time() - started < 1.5  # reading and filling included


def test_an_unknown_checkpoint_is_still_counted(tmp_path: Path) -> None:
    weight = torch.ones(4, 3)
    weight[:2] = 0
    torch.save({"body.weight": weight, "body.bias": torch.zeros(4), "n": torch.tensor(1)}, tmp_path / "m.pt")
    facts = analyze(str(tmp_path / "m.pt"))
    assert (facts.arch, facts.params, facts.nonzero, facts.layers[0].dead) == (None, 16, 6, 2)
    assert any("--arch" in note for note in facts.notes)


def test_a_users_file_is_imported_only_when_named(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\ndef build(width=4):\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, width))\n"
    )
    model = open_model(f"{net}:build?width=6", Opening(inputs=(Argument((1, 3, 2, 2)),)))
    assert model.module[1].out_features == 6


@pytest.mark.parametrize("text", ["", "net.py:", "resnet18?classes", ":x"])
def test_bad_specs(text: str) -> None:
    with pytest.raises(ArchError):
        build(parse(text))


def test_what_is_built_to_be_looked_at_is_not_initialised() -> None:
    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    seen: set[str] = set()
    with skeleton(), Ops():
        module = build(parse("torchvision:resnet18"))
    assert all(p.is_meta for p in module.parameters())
    assert "empty" in seen
    assert not seen & {"uniform_", "normal_"}
