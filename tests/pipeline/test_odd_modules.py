"""Modules that hold more than layers and tensors."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.facts import PruneFacts
from prunecli.recipe.load import validate


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.factor = nn.Linear(64, 32), nn.Linear(32, 10), 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)).relu()) * self.factor


class Remembers(Plain):
    """Its state is no tensor."""

    def get_extra_state(self) -> object:
        return {"factor": self.factor}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.factor = state["factor"]


class Counts(Plain):
    """Its state is a tensor."""

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.factor)

    def set_extra_state(self, state: Tensor) -> None:
        self.factor = int(state)


class Locked(Plain):
    """It holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return super().forward(x)


def pruned(module: nn.Module, path: Path, method: str = "magnitude", **fields: object) -> PruneFacts:
    known = {"version": 1, "method": {"name": method}, "budget": {"flops": 0.6}} | fields
    return prunecli.prune(validate(known), module, path, prunecli.Opening.like(torch.zeros(1, 1, 8, 8)))


@pytest.mark.parametrize("kind", [Remembers, Counts, Locked])
def test_it_is_pruned_and_comes_back(kind: type[Plain], tmp_path: Path) -> None:
    module = kind()
    facts = pruned(module, tmp_path / "small.safetensors")
    assert facts.after.flops <= 0.6 * facts.before.flops
    small = prunecli.load(tmp_path / "small.safetensors", into=kind())
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert module.first.weight.shape == (32, 64)


def test_state_that_is_a_tensor_comes_back(tmp_path: Path) -> None:
    module = Counts()
    module.factor = 3
    pruned(module, tmp_path / "small.safetensors")
    assert prunecli.load(tmp_path / "small.safetensors", into=Counts()).factor == 3


def test_state_that_no_file_holds_is_named(tmp_path: Path) -> None:
    facts = pruned(Remembers(), tmp_path / "small.safetensors")
    assert facts.notes[0] == "_extra_state is no tensor: no file holds it"


@pytest.mark.parametrize("method", ["grda", "selfsup", "magnitude"])
def test_training_takes_it(method: str, tmp_path: Path) -> None:
    weights = {"budget": {"sparsity": 0.5}} if method != "magnitude" else {}
    train = {"epochs": 1, "batch_size": 256, "validation": 0.1}
    facts = pruned(Remembers(), tmp_path / "small.safetensors", method, data="digits", train=train, **weights)
    assert facts.after.accuracy is not None
