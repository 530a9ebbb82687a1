"""Which cuts are plain, and which of those come true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.surgery.forecast import Forecast
from prunecli.surgery.plan import of_each
from prunecli.surgery.probe import halves
from prunecli.surgery.trial import inspected, trial

EXAMPLE = Example((torch.zeros(2, 3, 6, 6),))


class Between(nn.Module):
    """Two layers, and what happens between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], groups: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 16, 3, groups=groups), nn.Linear(16 * 4, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.between(self.norm(self.first(x)))).flatten(1))


def forecast(module: nn.Module) -> Forecast:
    channels = trace(module, EXAMPLE)
    return Forecast(channels, halves(channels))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_plain_cut_comes_true(groups: int) -> None:
    """The number of groups of a depthwise layer follows, that of another one stays."""
    module = Between(lambda x: x.relu() * 0.5, groups)
    found = forecast(module)
    assert found.removed.any()
    assert found.is_plain
    assert found.comes_true(module, EXAMPLE)
    assert inspected(module, EXAMPLE, found) is None


SHUFFLED = lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).relu().transpose(1, 2).flatten(1, 2)  # noqa: E731


@pytest.mark.parametrize("between", [SHUFFLED, lambda x: torch.cat([*x.chunk(2, 1)][::-1], 1)])
def test_heads_and_equal_parts_are_plain(between: Callable[[Tensor], Tensor]) -> None:
    module = Between(between)
    found = forecast(module)
    assert found.removed.any()
    assert found.is_plain
    assert found.comes_true(module, EXAMPLE)
    assert inspected(module, EXAMPLE, found) is None


@pytest.mark.parametrize("between", [lambda x: x.flip(1).flip(1), lambda x: torch.cat([x[:, :3], x[:, 3:]], 1)])
def test_what_may_take_channels_in_another_order_is_inspected(between: Callable[[Tensor], Tensor]) -> None:
    """Of the second, both parts lose something, but not as they were equal."""
    assert not forecast(Between(between)).is_plain


@pytest.mark.parametrize(("gone", "plain"), [([0, 2, 4, 6], True), ([0, 1, 6, 7], False), ([0, 1, 2, 4], False)])
def test_rows_that_take_turns_lose_the_same_places(gone: list[int], plain: bool) -> None:
    """Eight channels as two rows of four: rows of other places, or of other lengths, are inspected."""
    channels = trace(Between(SHUFFLED), EXAMPLE)
    removed = np.zeros(channels.count, dtype=np.bool_)
    removed[next(slot for slot in channels.slots if slot.name == "first.weight").channels[gone]] = True
    assert Forecast(channels, removed).is_plain == plain


def test_one_channel_alone_is_inspected() -> None:
    channels = trace(Between(torch.relu), EXAMPLE)
    assert not Forecast(channels, of_each(channels, lambda group: group[1:])).is_plain


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: x * x.shape[1], "a number follows the width"),
        (lambda x: x.view(-1, 8, 4, 4), "does not run"),
    ],
)
def test_what_does_not_come_true_has_its_reason(between: Callable[[Tensor], Tensor], reason: str) -> None:
    module = Between(between)
    found = forecast(module)
    assert found.is_plain
    assert not found.comes_true(module, EXAMPLE)
    trouble = trial(module, EXAMPLE, found.channels, found.removed)
    assert trouble is not None
    assert reason in trouble.reason
