"""Strip: closed forms on the smallest networks that have each difficulty."""

from __future__ import annotations

import copy

import pytest
import torch
from randomise import randomise, zero_filters
from torch import Tensor, nn
from torch.nn import functional as F
from zoo.test_strip_zoo import NETS

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.surgery.strip import strip
from prunecli.surgery.verify import compare


def check(module: nn.Module, size: int = 9, channels: int = 3) -> nn.Module:
    """Strip in float64, insist on equality at two sizes, and return the result."""
    module = module.double().eval()
    example = Example((torch.zeros(1, channels, size, size, dtype=torch.float64),))
    result = strip(module, example)
    tests = [random_example(example, 0), random_example(Example((torch.zeros(1, channels, size + 4, size + 2),)), 1)]
    assert compare(module, result.module, tests, torch.float64).max_rel_error <= 1e-12
    return result.module


class Pair(nn.Module):
    """Two convolutions; channels of the first are constant where its filters are zero."""

    def __init__(self, padding: int, activation: nn.Module, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.activation = activation
        self.second = nn.Conv2d(8, 4, 3, padding=padding)
        randomise(self)
        self.first.weight.data[:5] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.norm(self.first(x)))).mean((2, 3))


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.Hardswish()])
def test_constants_fold_into_the_bias_without_padding(activation: nn.Module) -> None:
    small = check(Pair(0, activation))
    assert small.first.out_channels == 3


@pytest.mark.parametrize("activation", [nn.Identity(), nn.Sigmoid(), nn.GELU()])
def test_one_constant_channel_stays_under_zero_padding(activation: nn.Module) -> None:
    """The trap: a constant beside padding zeros is no bias. Five constants become one."""
    small = check(Pair(1, activation))
    assert small.first.out_channels == 4


def test_zero_constants_go_without_a_trace() -> None:
    module = Pair(1, nn.ReLU())
    module.norm.bias.data[:5] = -5.0  # relu makes them zero
    small = check(module)
    assert small.first.out_channels == 3


def test_a_bias_is_added_where_there_was_none() -> None:
    module = Pair(0, nn.Sigmoid())
    module.second = nn.Conv2d(8, 4, 3, bias=False)
    small = check(module)
    assert small.second.bias is not None


def test_dead_channels_are_those_nobody_reads() -> None:
    module = Pair(1, nn.ReLU(), norm=False)
    module.first.weight.data.normal_()
    module.second.weight.data[:, 2:6] = 0
    small = check(module)
    assert small.first.out_channels == 4


def test_nothing_to_do_changes_nothing() -> None:
    module = randomise(build(parse("digits_net"))).double()
    result = strip(module, Example((torch.zeros(1, 1, 8, 8, dtype=torch.float64),)))
    assert result.removed == 0
    assert result.journal.kept == {}


def test_a_dead_branch_frees_its_inputs_too() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
            randomise(self)
            self.b.weight.data[:, :3] = 0
            self.c.weight.data[:, 3:] = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(F.relu(self.a(x))))).mean((2, 3))

    small = check(Chain())
    assert (small.a.out_channels, small.b.out_channels) == (3, 3)


@pytest.mark.parametrize(("dead", "left"), [([0, 1, 2, 3], 8), ([4, 5, 6, 7, 8, 9, 10, 11], 4), ([0, 1, 2, 5], 12)])
def test_a_group_of_a_group_norm_goes_when_all_of_it_is_dead(dead: list[int], left: int) -> None:
    """What is left of a dead group is its shift; a group that is half dead must stay, or its statistic changes."""
    module = nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.Sigmoid(), nn.Conv2d(12, 5, 3))
    randomise(module)
    module[0].weight.data[dead], module[0].bias.data[dead] = 0, torch.randn(len(dead))
    small = check(module)
    assert (small[0].out_channels, small[1].num_groups, small[3].in_channels) == (left, left // 4, left)


def test_layer_norm_is_left_alone() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)
            self.a.weight.data[:4] = 0
            self.a.bias.data[:4] = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x.mean((2, 3)))))

    small = check(Normed(), channels=6)
    assert small.a.out_features == 8


@pytest.mark.parametrize("name", ["cifar_resnet20", "torchvision:mobilenet_v2", "torchvision:squeezenet1_1"])
def test_real_networks(name: str) -> None:
    """The whole list runs under -m zoo."""
    module = zero_filters(randomise(build(parse(name))), 0.5).eval().double()
    example = Example((torch.zeros(1, 3, NETS[name], NETS[name], dtype=torch.float64),))
    small = strip(module, example).module
    tests = [random_example(example, 0)]
    assert compare(module, small, tests, torch.float64).max_rel_error <= 1e-12
    assert compare(module, copy.deepcopy(small).float(), tests, torch.float32).max_rel_error <= 1e-5
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in module.parameters())


def test_constants_pass_through_a_shuffle() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1)).double().eval()
    first = module[0]
    first.weight.data[[1, 5]], first.bias.data[[1, 5]] = 0.0, 0.3  # those of one turn
    example = Example((torch.randn(2, 3, 4, 4).double(),))
    result = strip(module, example)
    assert result.module[0].out_channels == 6
    assert compare(module, result.module, [example], torch.float64).max_rel_error < 1e-12
