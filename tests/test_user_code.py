"""Networks in users' files are imported as they are where the user stands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prunecli.checkpoint.read import read
from prunecli.errors import ArchError, CheckpointError
from prunecli.user_code import user_function

BLOCKS = "from torch import nn\n\n\ndef block():\n    return nn.Linear(2, 3)\n"
NET = "from {place} import block\n\n\ndef build():\n    return block()\n"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports, and where from, is nobody else's."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    known = dict(sys.modules)
    yield
    for name in sys.modules.keys() - known.keys():
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
