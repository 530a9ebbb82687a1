"""A device that is not the CPU: every training, every look at a data set, and modules that live there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.pipeline import evaluation
from prunecli.recipe.load import validate
from prunecli.train.evaluate import accuracy
from prunecli.train.split import Split

IMAGES = torch.randn(2, 3, 12, 12)
DIGITS = Path(__file__).parents[2] / "recipes" / "digits.safetensors"
TESTS = Path(__file__).parents[1]
THERE = ["train/test_second_device.py", "train/test_loop.py", "methods", "surgery/test_recover.py"]
FUSED = "methods/test_low_rank.py::test_a_recurrent_file_holds_factors_and_can_be_cut_further"  # an LSTM of GPUs' own
inside = pytest.mark.skipif("second_device" not in sys.modules, reason="runs within test_nothing_mixes_devices")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") and shutil.which("ninja")), reason="no compiler to build a device with")
def test_nothing_mixes_devices() -> None:
    paths = [str(TESTS / path) for path in THERE]
    chosen = ["-m", "not slow", "--deselect", str((TESTS / FUSED).relative_to(TESTS.parent))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "second_device", *chosen, *paths]
    found = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=TESTS.parent, env=os.environ | {"PYTHONPATH": found}
    )
    assert done.returncode == 0, done.stdout[-3000:]


class Net(nn.Module):
    """Two layers; the third, a shift and the device are plain attributes, which `Module.to` leaves as they are."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 3)
        self.to(device)
        self.held = [nn.Conv2d(4, 4, 1).to(device)]
        self.shift = torch.ones(4, 1, 1, device=device)
        self.device = torch.device(device)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 4)."""
        x = self.last(self.norm(self.first(x.to(self.device))).relu())
        return (self.held[0](x) + self.shift).mean((2, 3))


@inside
def test_a_module_there_is_pruned_filled_and_exported(tmp_path: Path) -> None:
    module = Net("second").eval()
    images = IMAGES.to("second")
    takes = prunecli.Opening.like(images)
    before = module(images)
    facts = prunecli.prune(prunecli.load_recipe("magnitude-flops50"), module, tmp_path / "small.safetensors", takes)
    assert facts.verified is not None
    assert facts.verified.max_rel_error < 1e-12
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"second"}
    assert torch.equal(module(images), before)
    small = prunecli.load(tmp_path / "small.safetensors", into=Net("second"))
    assert {tensor.device.type for tensor in small.state_dict().values()} == {"second"}
    assert small.first.weight.shape[0] < 8
    assert small(images).shape == before.shape
    prunecli.export(module, tmp_path / "net.safetensors", takes)


@inside
def test_it_is_trained_there_and_comes_back(tmp_path: Path) -> None:
    fields = {"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.7}, "data": "fake:3x12x12"}
    module, output = Net("second"), tmp_path / "small.safetensors"
    prunecli.prune(validate(fields | {"train": {"epochs": 1}}), module, output, prunecli.Opening.like(IMAGES))
    assert prunecli.load(output, into=Net("cpu"))(IMAGES).shape == (2, 4)


@inside
def test_whole_data_sets_are_looked_at_there(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def looked(module: nn.Module, split: Split) -> float:
        places.append(next(module.parameters()).device.type)
        return accuracy(module, split)

    monkeypatch.setattr(evaluation, "accuracy", looked)
    facts = prunecli.analyze(DIGITS, data="digits")
    assert facts.accuracy is not None
    assert facts.accuracy > 0.95
    assert places == ["second"]
