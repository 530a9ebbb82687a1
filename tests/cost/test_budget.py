"""Budgets: never above, close below, ties and impossible ones."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.cost.budget import Search
from prunecli.cost.count import Polynomial, flops
from prunecli.errors import InputError
from prunecli.graph.channels import Channels, trace
from prunecli.graph.tape import Example


@cache
def case() -> tuple[Channels, Polynomial]:
    torch.manual_seed(0)
    channels = trace(build(parse("cifar_resnet20")).eval(), Example((torch.zeros(1, 3, 32, 32),)))
    return channels, flops(channels)


def kept_share(removed: np.ndarray) -> float:
    channels, cost = case()
    return cost(~removed) / cost(np.ones(channels.count, dtype=np.bool_))


def search(scores: np.ndarray, share: float, **options: int) -> Search:
    channels, cost = case()
    whole = cost(np.ones(channels.count, dtype=np.bool_))
    return Search(channels, scores, cost, share * whole, unit="flops", **options)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("round_to", [1, 8])
def test_met_from_below(share: float, round_to: int) -> None:
    scores = np.random.default_rng(1).random(case()[0].count)
    met = kept_share(search(scores, share).solve(round_to))
    assert share - 0.01 <= met <= share


def test_tied_scores_are_no_excuse() -> None:
    assert 0.49 <= kept_share(search(np.ones(case()[0].count), 0.5).solve()) <= 0.5


def test_widths_are_rounded_where_it_costs_no_budget() -> None:
    channels, _ = case()
    removed = search(np.random.default_rng(2).random(channels.count), 0.5).solve(8)
    widths = [int((~removed[g.channels]).sum()) for g in channels.groups if not g.frozen]
    assert all(width % 8 == 0 for width in widths)


def test_narrow_groups_are_multiples_or_whole() -> None:
    """17 channels of 24 would take as long as 32."""
    torch.manual_seed(0)
    widths = (24, 96, 8, 160, 40)
    pairs = zip((3, *widths), widths, strict=False)
    module = nn.Sequential(*(nn.Conv2d(first, second, 3) for first, second in pairs), nn.Conv2d(40, 5, 1)).eval()
    channels = trace(module, Example((torch.zeros(1, 3, 16, 16),)))
    cost = flops(channels)
    scores = np.random.default_rng(0).random(channels.count)
    for share in (0.3, 0.5, 0.7):
        whole = cost(np.ones(channels.count, dtype=np.bool_))
        removed = Search(channels, scores, cost, share * whole).solve(16)
        assert share - 0.01 <= cost(~removed) / whole <= share
        left = {len(g.channels): int((~removed[g.channels]).sum()) for g in channels.groups if not g.frozen}
        assert left[8] == 8
        assert sum(kept % 16 != 0 and kept != size for size, kept in left.items()) <= 1  # that fills up the budget


@pytest.mark.parametrize("share", [0.4, 0.75])
@pytest.mark.parametrize("round_to", [1, 8])
def test_a_grouped_convolution_is_as_wide_as_the_budget_says(share: float, round_to: int) -> None:
    """Its kernels like groups of 8 or 16, which alone would leave an eighth of the budget unused."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, groups=2), nn.Conv2d(64, 5, 1)).eval()
    channels = trace(module, Example((torch.zeros(1, 3, 16, 16),)))
    cost = flops(channels)
    whole = cost(np.ones(channels.count, dtype=np.bool_))
    removed = Search(channels, np.random.default_rng(0).random(channels.count), cost, share * whole).solve(round_to)
    kept = [int((~removed[rows]).sum(axis=1)[0]) for rows in channels.filters]
    assert share - 0.01 <= cost(~removed) / whole <= share
    assert any(width % 8 for width in kept)


class Shuffling(nn.Module):
    """A stream that is added to in another order ties the groups of all of its convolutions together."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 1), nn.Conv2d(width, 5, 1)
        self.mix, self.back = (nn.ModuleList(nn.Conv2d(width, width, 1, groups=groups) for _ in "123") for _ in "12")
        self.shuffle = nn.ChannelShuffle(groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for mix, back in zip(self.mix, self.back, strict=True):
            x = x + back(self.shuffle(mix(x).relu()))
        return self.head(x)


@pytest.mark.parametrize(("width", "share"), [(36, 0.05), (108, 0.01)])
def test_kernels_do_not_decide_what_is_possible(width: int, share: float) -> None:
    channels = trace(Shuffling(width, 3).eval(), Example((torch.zeros(1, 3, 8, 8),)))
    cost = flops(channels)
    limit = share * cost(np.ones(channels.count, dtype=np.bool_))
    asked = Search(channels, np.random.default_rng(0).random(channels.count), cost, limit)
    assert asked.least() <= cost(~asked.solve()) <= limit


def test_min_channels() -> None:
    channels, _ = case()
    removed = search(np.random.default_rng(3).random(channels.count), 0.3, min_channels=6).solve()
    assert all((~removed[g.channels]).sum() >= min(6, len(g.channels)) for g in channels.groups)


def test_an_impossible_budget_names_the_least_possible() -> None:
    with pytest.raises(InputError, match=r"least possible is 0\.29 %"):
        search(np.ones(case()[0].count), 0.001).solve()


def test_the_same_scores_give_the_same_cut() -> None:
    scores = np.random.default_rng(4).integers(0, 3, case()[0].count).astype(float)
    first, second = (search(scores, 0.5).solve(8) for _ in range(2))
    assert (first == second).all()
