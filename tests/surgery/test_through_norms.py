"""Cuts through layer norms and means: the statistics are those of the channels that stay, and so is the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunecli
from prunecli.graph.channels import Channels, trace
from prunecli.graph.tape import Example
from prunecli.inputs import Argument
from prunecli.model import Opening, open_model
from prunecli.recipe.load import validate
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.probe import halves, survey
from prunecli.surgery.strip import strip
from prunecli.surgery.verify import compare

SOURCE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 4, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


def build():
    return Net()
"""


class RootMean(nn.Module):
    """RMS normalisation by hand (Llama), between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.weight = nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def halved(module: nn.Module, example: Example) -> tuple[nn.Module, nn.Module, Channels]:
    channels = survey(module, example, through_norms=True)
    removed = halves(channels)
    smaller, _ = cut(module, channels, removed)
    return masked(module, channels, removed), smaller, channels


def test_a_mean_square_is_of_what_stays() -> None:
    torch.manual_seed(0)
    module, example = RootMean().double().eval(), Example((torch.randn(4, 6).double(),))
    reference, smaller, _ = halved(module, example)
    assert smaller.first.out_features == 6
    assert compare(reference, smaller, [example], torch.float64).max_rel_error < 1e-14
    x = module.first(example.args[0])[:, ::2]  # by hand
    normal = module.weight[::2] * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = F.linear(normal, module.last.weight[:, ::2], module.last.bias)
    torch.testing.assert_close(smaller(*example.args), expected)


class Demodulated(nn.Module):
    """Filters of length one, whatever the style of each image (Karras et al. 2020, StyleGAN2)."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.first, self.last = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(1, 8, 12, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = self.first(x)[:, :, None, None] * torch.linspace(-1, 1, 25, dtype=x.dtype, device=x.device).view(5, 5)
        weight = self.weight * self.style(x)[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        images = F.conv2d(images.flatten(0, 1)[None], weight.flatten(0, 1), groups=len(x))
        return self.last(images.view(len(x), -1, 3, 3).mean((2, 3)))


def test_a_sum_over_channels_and_places_is_of_the_channels_that_stay() -> None:
    torch.manual_seed(0)
    module, example = Demodulated().double().eval(), Example((torch.randn(4, 6).double(),))
    reference, smaller, _ = halved(module, example)
    assert (smaller.first.out_features, smaller.weight.shape[2]) == (6, 6)
    assert compare(reference, smaller, [example], torch.float64).max_rel_error < 1e-13
    assert compare(module, smaller, [example], torch.float64).max_rel_error > 1e-2


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 (Qiao et al. 2019), as timm writes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filters = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(filters, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def test_a_filter_is_standardised_over_the_inputs_that_stay() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        Standardised(3, 8, 3, padding=1), nn.Softplus(), Standardised(8, 6, 3), nn.GroupNorm(1, 6), nn.Conv2d(6, 4, 1)
    ).double()  # softplus(0) is not 0: what has gone must not be read
    example = Example((torch.randn(2, 3, 7, 7).double(),))
    reference, smaller, _ = halved(module.eval(), example)
    assert (smaller[0].out_channels, smaller[2].in_channels, smaller[2].out_channels) == (4, 4, 3)
    assert (smaller[3].num_groups, smaller[3].num_channels) == (1, 3)
    assert compare(reference, smaller, [example], torch.float64).max_rel_error < 1e-12
    weight = module[2].weight[::2, ::2].flatten(1)  # by hand
    normal = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    x = module[1](module[0](*example.args))[:, ::2]
    expected = F.conv2d(x, normal.reshape(3, 4, 3, 3), module[2].bias[::2])
    torch.testing.assert_close(smaller[:3](*example.args), expected)


def network(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return f"{path}:build"


def test_a_transformer_loses_a_part_of_its_embedding(tmp_path: Path) -> None:
    module = open_model(network(tmp_path), Opening(inputs=(Argument((1, 3, 8, 8)),))).module.double()
    example = Example((torch.randn(2, 3, 8, 8).double(),))
    reference, smaller, channels = halved(module, example)
    assert smaller.patches.out_channels == 8
    assert smaller.norm.normalized_shape == (8,)
    assert smaller.blocks[0].attention.num_heads == 2
    assert len(channels.mixed) >= 5
    assert compare(reference, smaller, [example], torch.float64).max_rel_error < 1e-12


def test_the_reference_is_not_the_model_with_zeros(tmp_path: Path) -> None:
    """Zeros would still count in the mean: the proof has to know better."""
    module = open_model(network(tmp_path), Opening(inputs=(Argument((1, 3, 8, 8)),))).module.double()
    example = Example((torch.randn(2, 3, 8, 8).double(),))
    reference, smaller, _ = halved(module, example)
    assert compare(reference.module, smaller, [example], torch.float64).max_rel_error > 1e-3


@pytest.mark.parametrize("through_norms", [True, False])
def test_by_recipe(through_norms: bool, tmp_path: Path) -> None:
    source, output = network(tmp_path), tmp_path / "small.safetensors"
    method = {"name": "magnitude", "through_norms": through_norms}
    fields = {"version": 1, "input": "1x3x8x8", "method": method, "budget": {"params": 0.6}}
    facts = prunecli.prune(validate(fields), source, output)
    assert facts.budget.met <= 0.6
    assert facts.verified.max_rel_error < 1e-12
    small = open_model(str(output), Opening(arch=source)).module
    assert (small.patches.out_channels < 16) == through_norms


def test_strip_never_goes_through_a_norm(tmp_path: Path) -> None:
    module = open_model(network(tmp_path), Opening(inputs=(Argument((1, 3, 8, 8)),))).module.double()
    with torch.no_grad():
        for part in (module.patches, module.blocks[0].mlp[2], module.blocks[1].mlp[2]):
            part.weight[3], part.bias[3] = 0, 0
    example = Example((torch.randn(2, 3, 8, 8).double(),))
    result = strip(module, example)
    assert result.module.patches.out_channels == 16
    assert compare(module, result.module, [example], torch.float64).max_rel_error < 1e-12


def test_a_norm_is_a_wall_unless_asked() -> None:
    module, example = RootMean().eval(), Example((torch.randn(4, 6),))
    channels = trace(module, example)
    group = next(g for g in channels.groups if "first.weight[0]" in channels.member_names(g))
    assert group.frozen.startswith("summed up at aten.mean")
    assert not np.any(halves(channels)[group.channels])
