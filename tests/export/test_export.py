"""Exported files compute what the model does, in their own runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import prunecli
from prunecli.cost.latency import turns
from prunecli.errors import InputError, VerificationError
from prunecli.exporters.targets import onnx_session
from prunecli.graph.tape import Example
from prunecli.recipe.load import load
from prunecli.train.data import open_data


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    recipe = load("quickstart", ["train=null"])
    prunecli.prune(recipe, recipe.model, path)
    return str(path)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return next(open_data("digits", (1, 8, 8), 10).test.batches([torch.arange(7)]))


def test_onnx_on_real_images(small: str, images: torch.Tensor, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    facts = prunecli.export(small, tmp_path / "m.onnx")
    assert facts.checked == "onnxruntime"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})  # another batch size
    torch.testing.assert_close(torch.from_numpy(found), prunecli.load(small)(images).detach(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_onnxruntime_takes_no_longer_in_turns_than_alone() -> None:
    """Threads of one session that spin on would take the cores from the other: twice the time, on two cores."""
    pytest.importorskip("onnxruntime")
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    module, example = nn.Sequential(*layers).eval(), Example((torch.randn(1, 64, 56, 56),))
    first, second = onnx_session(module, example), onnx_session(module, example)
    cpu = torch.device("cpu")
    alone = np.median(turns([first], cpu), axis=0)
    together = np.median(turns([first, second], cpu), axis=0)
    assert together.max() < 1.5 * alone.max()


ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
assert not any(name.startswith("prunecli") for name in sys.modules)
images = torch.load(sys.argv[2])
torch.save(program(images).detach(), sys.argv[3])
"""


def test_pt2_runs_without_prunecli(small: str, images: torch.Tensor, tmp_path: Path) -> None:
    prunecli.export(small, tmp_path / "m.pt2")
    torch.save(images, tmp_path / "images")
    places = [str(tmp_path / name) for name in ("m.pt2", "images", "found")]
    subprocess.run([sys.executable, "-c", ALONE, *places], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "found"), prunecli.load(small)(images).detach(), atol=1e-5, rtol=0)


def test_torchscript(small: str, images: torch.Tensor, tmp_path: Path) -> None:
    prunecli.export(small, tmp_path / "m.ts")
    found = torch.jit.load(str(tmp_path / "m.ts"))(images)
    torch.testing.assert_close(found, prunecli.load(small)(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_state_dicts(suffix: str, small: str, tmp_path: Path) -> None:
    path = tmp_path / f"m.{suffix}"
    prunecli.export(small, path)
    found = load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
    own = prunecli.load(small).state_dict()
    assert all(torch.equal(found[n], t) for n, t in own.items())


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "ts"])
def test_an_input_that_does_not_fit_is_no_fault_of_the_format(suffix: str, small: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the model does not run: .*in stem") as caught:
        prunecli.export(small, tmp_path / f"m.{suffix}", prunecli.Opening.like(torch.zeros(1, 9, 9)))
    assert caught.value.hint == "check --input"
    assert not list(tmp_path.iterdir())


def test_half_precision_differs_in_its_last_places_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64)).half()
    facts = prunecli.export(module, tmp_path / "m.onnx", prunecli.Opening.like(torch.zeros(1, 256)))
    assert 1e-4 < facts.max_abs_error < 4e-3
    with pytest.raises(InputError) as caught:
        prunecli.export(module.bfloat16(), tmp_path / "b.onnx", prunecli.Opening.like(torch.zeros(1, 256)))
    assert "bfloat16" in caught.value.hint
    assert not (tmp_path / "b.onnx").exists()


class Prefixed(nn.Module):
    """Its own names begin like a wrapper's, and it has a weight that others would fold."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_state_dicts_keep_the_names_of_the_model(suffix: str, tmp_path: Path) -> None:
    path, module = tmp_path / f"m.{suffix}", Prefixed()
    prunecli.export(module, path, prunecli.Opening.like(torch.zeros(1, 4)))
    found = load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
    Prefixed().load_state_dict(found)


class OneFilterEach(nn.Module):
    """Every image has filters of its own, so that the batch size is a number of groups (StyleGAN2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(1, 6, 3, 3, 3)), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        filters = self.weight * self.style(x.mean((2, 3)))[:, None, :, None, None]
        return F.conv2d(x.reshape(1, n * c, h, w), filters.flatten(0, 1), groups=n).view(n, 6, h - 2, w - 2)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ts"])
def test_where_no_batch_size_is_free_the_file_has_one(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    fixed = prunecli.export(OneFilterEach(), tmp_path / f"fixed{suffix}", takes)
    free = prunecli.export(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / f"free{suffix}", takes)
    assert "a batch of 1 only" in " ".join(fixed.notes) or suffix == ".pt2"  # which holds symbols
    assert fixed.max_abs_error < 1e-5
    assert free.notes == []


class Latent(nn.Module):
    """An autoencoder that draws its latent."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.back = nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.mean(x)
        return self.back(mean + torch.randn_like(mean))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ts"])
def test_what_is_drawn_is_the_same_where_torch_draws_it(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path, takes = tmp_path / f"m{suffix}", prunecli.Opening.like(torch.zeros(1, 6))
    if suffix != ".onnx":
        assert prunecli.export(Latent(), path, takes).max_abs_error < 1e-6
        return
    with pytest.raises(VerificationError, match="let them be an input"):
        prunecli.export(Latent(), path, takes)
    assert not path.exists()
