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
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import prunecli
from prunecli.errors import InputError
from prunecli.recipe.load import validate


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


def test_a_magnitude_that_does_not_fit_its_direction_is_refused(tmp_path: Path) -> None:
    """Torch's kernel would read what lies behind it."""
    net = nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}})
    prunecli.prune(recipe, net, tmp_path / "small.safetensors", prunecli.Opening.like(torch.zeros(1, 4)))
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["prunecli"])
    magnitude = "0.parametrizations.weight.original0"
    (cut,) = facts["journal"]["cuts"]
    cut["in"].remove(f"{magnitude}:0")
    facts["journal"]["cuts"].append({"kept": "0", "in": [f"{magnitude}:0"]})
    tensors[magnitude] = tensors[magnitude][:1].clone()
    save_file(tensors, tmp_path / "bad.safetensors", {"format": "pt", "prunecli": json.dumps(facts)})
    with pytest.raises(InputError, match="apart"):
        prunecli.load(tmp_path / "bad.safetensors", into=net)


def test_the_untouched_copy_loads(good: Path, tmp_path: Path) -> None:
    copied = prunecli.load(tampered(good, lambda f: None, tmp_path))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(copied(images), prunecli.load(good)(images))
