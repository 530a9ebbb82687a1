"""Networks in users' files are imported as they are where the user stands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import prunecli
from prunecli.checkpoint.read import read
from prunecli.errors import ArchError, CheckpointError
from prunecli.graph.rules.call import RULES
from prunecli.inputs import parse_inputs
from prunecli.model import open_model
from prunecli.recipe.load import validate
from prunecli.user_code import user_function

BLOCKS = "from torch import nn\n\n\ndef block():\n    return nn.Linear(2, 3)\n"
NET = "from {place} import block\n\n\ndef build():\n    return block()\n"


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports from its folder, and where from, is nobody else's."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def project(folder: Path, place: str, *packages: str) -> Path:
    """``deep/nets/{blocks,net}.py`` below a folder, of which `packages` are packages; the path of the network."""
    nets = folder / "deep" / "nets"
    nets.mkdir(parents=True)
    for package in packages:
        (folder / package / "__init__.py").touch()
    (nets / "blocks.py").write_text(BLOCKS)
    (nets / "net.py").write_text(NET.format(place=place))
    return nets / "net.py"


@pytest.mark.parametrize(
    ("place", "packages"),
    [
        (".blocks", ["deep", "deep/nets"]), (".blocks", ["deep/nets"]), ("deep.nets.blocks", ["deep", "deep/nets"]),
        ("nets.blocks", ["deep/nets"]), ("blocks", []), ("blocks", ["deep", "deep/nets"]),
    ],
)  # fmt: skip
def test_a_file_sees_its_package_and_the_files_beside_it(place: str, packages: list[str], tmp_path: Path) -> None:
    net, before = project(tmp_path, place, *packages), sys.path[:]
    assert user_function(str(net), "build")().out_features == 3
    assert sys.path[: len(before)] == before
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize("name", ["deep/nets/net.py", "deep.nets.net"])
def test_the_working_directory_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, "deep.nets.blocks")
    monkeypatch.chdir(tmp_path)
    assert user_function(name, "build")().out_features == 3


def test_a_package_whose_name_is_taken(tmp_path: Path) -> None:
    first, second = (project(tmp_path / name, ".blocks", "deep/nets") for name in ("one", "two"))
    user_function(str(first), "build")
    with pytest.raises(ArchError, match=r"is nets\.net in its package, a name that .*one.* has"):
        user_function(str(second), "build")


def test_a_file_may_change_the_path_of_imports(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import sys\nsys.path = ['here', *sys.path[2:]]\n\n\ndef build():\n    return 3\n")
    assert user_function(str(tmp_path / "net.py"), "build")() == 3
    assert sys.path[0] == "here"


def test_a_package_that_cannot_be_imported_is_done_without(tmp_path: Path) -> None:
    alone, relative = (project(tmp_path / place, place, "deep/nets") for place in ("blocks", ".blocks"))
    for net in (alone, relative):
        (net.parent / "__init__.py").write_text("import a_library_that_is_not_here\n")
    assert user_function(str(alone), "build")().out_features == 3
    with pytest.raises(ArchError, match="No module named 'a_library_that_is_not_here'"):
        user_function(str(relative), "build")


def test_a_relative_import_without_a_package_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArchError, match=r"MODULE:FUNCTION in the folder that its imports start from"):
        user_function(str(project(tmp_path, ".blocks")), "build")


def test_a_trusted_file_needs_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    torch.save(user_function("mine", "Net")(2, 3), tmp_path / "m.pt")
    del sys.modules["mine"]
    sys.path.remove(str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="needs code that is not here: No module named 'mine'"):
        read(tmp_path / "m.pt", trust=True)
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path / "m.pt", trust=True).module is not None


RULED = """
import torch
from torch import nn

from prunecli import rule


@torch.library.custom_op("prunecli_tests::swish", mutates_args=())
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


@swish.register_fake
def _(x):
    return torch.empty_like(x)


@rule("prunecli_tests::swish")
def elementwise(call, book):
    return [call.labels(0)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(swish(self.first(x)).mean((2, 3)))
"""


def test_a_rule_in_the_file_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is asked for several times in one run; its rule is registered once."""
    monkeypatch.setitem(RULES, "prunecli_tests.swish", lambda call, book: [()])  # so that it goes with the test
    monkeypatch.delitem(RULES, "prunecli_tests.swish")
    (tmp_path / "net.py").write_text(RULED)
    arch = f"{tmp_path / 'net.py'}:Net"
    fields = {"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}}
    takes = prunecli.Opening(inputs=parse_inputs("1x3x8x8"))
    assert prunecli.prune(validate(fields), arch, tmp_path / "o.safetensors", takes).removed_channels == 4
    assert prunecli.load(tmp_path / "o.safetensors", arch=arch).first.out_channels == 4
    with pytest.raises(ArchError, match=r"made from .*net\.py:Net\) as cifar_resnet20 does not fit"):
        prunecli.load(tmp_path / "o.safetensors", arch="cifar_resnet20")
    with pytest.raises(ValueError, match=r"has a rule already: prunecli_user_net\.elementwise"):
        prunecli.rule("prunecli_tests::swish")(lambda call, book: [])
    (tmp_path / "net.py").write_text(RULED.replace("Conv2d(3, 8, 3)", "Conv2d(3, 8, 3, bias=False)"))
    assert open_model(arch, takes).module.first.bias is None  # a file that has changed is read again


PLAIN = """
from torch import nn


def build(width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


def test_a_teacher_of_the_same_architecture(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    place, small = tmp_path / "plain.py", tmp_path / "small.safetensors"
    takes = prunecli.Opening(arch=f"{place}:build", inputs=parse_inputs("1x1x8x8"))
    torch.save(user_function(str(place), "build")().state_dict(), tmp_path / "dense.pt")
    fields = {"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}}
    prunecli.prune(validate(fields), str(tmp_path / "dense.pt"), small, takes)
    course = validate({"version": 1, "data": "digits", "train": {"epochs": 1, "lr": 0.1, "distill": {}}})
    facts = prunecli.finetune(course, str(small), tmp_path / "o.safetensors", takes, teacher=str(tmp_path / "dense.pt"))
    assert facts.after.params < 800
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ArchError, match="does not fit"):
        prunecli.finetune(course, str(small), tmp_path / "p.safetensors", takes, teacher=str(tmp_path / "other.pt"))
