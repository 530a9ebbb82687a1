"""Metadata that lies: refused with one message, nothing set, nothing allocated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import prunecli
from prunecli.errors import InputError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "small.safetensors"
    prunecli.prune(prunecli.load_recipe("magnitude-flops50"), "digits_net", path)
    return path


def tampered(good: Path, change: Callable[[dict[str, Any]], object], folder: Path) -> Path:
    with safe_open(good, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["prunecli"])
    change(facts)
    save_file(tensors, folder / "bad.safetensors", {"format": "pt", "prunecli": json.dumps(facts)})
    return folder / "bad.safetensors"


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "version": lambda f: f.update(format_version=2),
    "no journal": lambda f: f.pop("journal"),
    "journal is text": lambda f: f.update(journal="all"),
    "endless indices": lambda f: f["journal"]["cuts"][0].update(kept="0-99999999999999"),
    "indices are text": lambda f: f["journal"]["cuts"][0].update(kept="a-b"),
    "replaces a method": lambda f: f["journal"]["attributes"].update({"head": {"forward": 3}}),
    "sets a class": lambda f: f["journal"]["attributes"].update({"head": {"__class__": 3}}),
    "sets text": lambda f: f["journal"]["attributes"]["stem.0"].update(out_channels="19"),
    "names a module that is not there": lambda f: f["journal"]["attributes"].update({"tail": {"groups": 1}}),
    "another architecture": lambda f: f.update(arch="cifar_resnet20"),
    "an architecture that is code": lambda f: f.update(arch="os:system"),
    "no architecture": lambda f: f.update(arch=None),
    "a configuration of code": lambda f: f.update(arch=None, config={"architectures": ["pipeline"]}),
    "a configuration of nothing": lambda f: f.update(arch=None, config={"architectures": 5}),
    "another configuration": lambda f: f.update(arch=None, config={"architectures": ["BertModel"], "hidden_size": 8}),
    "a configuration that is text": lambda f: f.update(arch=None, config="BertModel"),
    "an endless input": lambda f: f.update(input=[1, 1, 10**9, 10**9]),
    "several endless inputs": lambda f: f.update(input="1x9:int64,1x99999999999"),
    "an input that is text": lambda f: f.update(input="large"),
    "an alias of nothing": lambda f: f.update(aliases={"head.weight": "gone"}),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, good: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        prunecli.load(tampered(good, LIES[name], tmp_path))


def test_the_untouched_copy_loads(good: Path, tmp_path: Path) -> None:
    copied = prunecli.load(tampered(good, lambda f: None, tmp_path))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(copied(images), prunecli.load(good)(images))
