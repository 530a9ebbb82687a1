"""What a method that learns which channels matter needs of the engine: channels, their cost, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from prunecli.arrays import Bools, Floats, Ints
from prunecli.cost.budget import Search
from prunecli.cost.count import COSTS, Polynomial
from prunecli.graph.channels import Channels
from prunecli.graph.tape import Example
from prunecli.methods.base import select
from prunecli.recipe.schema import Budget
from prunecli.surgery.plan import PAIR
from prunecli.surgery.probe import Restrict, one_of_each, settle, survey, uneven


def excluding(module: nn.Module, patterns: list[str]) -> Restrict:
    """Freezes every group that a chosen module writes."""

    def restrict(channels: Channels) -> Channels:
        chosen = select(patterns, [name for name, _ in module.named_modules() if name])
        groups = {
            group.name: "excluded by the recipe"
            for group in channels.groups
            if any(channels.slots[s].name.rpartition(".")[0] in chosen for s in group.slots)
        }
        return channels.freeze(groups) if groups else channels

    return restrict


@dataclass(frozen=True)
class Reader:
    """A parameter that reads channels along one dim: who the positions of that dim are."""

    name: str
    dim: int
    channels: Ints


@dataclass(frozen=True)
class Widths:
    """The channels of a model that a budget is about.

    Attributes:
        channels: those that nothing but parameters read may go.
        cost: of kept channels, or of the chances that they are kept.
        amount: of `cost` that may be left.
        unit: of the budget.
        min_channels: what every layer keeps at least.
    """

    channels: Channels
    cost: Polynomial
    amount: float
    unit: str
    min_channels: int

    @cached_property
    def whole(self) -> float:
        """The cost of all channels."""
        return float(self.cost.terms(np.ones(self.channels.count)).sum())

    @property
    def target(self) -> float:
        """The share of the cost that may be left."""
        return self.amount / self.whole

    def left(self, kept: Bools | Floats) -> float:
        """The share of the cost that is left, from (channels,) kept or the chances that they are."""
        return float(self.cost.terms(kept).sum()) / self.whole

    @property
    def free(self) -> Bools:
        """(channels,) those that may go."""
        found: Bools = ~self.channels.frozen
        return found

    def choose(self, scores: Floats) -> Bools:
        """(channels,) what goes so that the budget holds.

        Raises:
            InputError: the budget is impossible.
        """
        search = Search(self.channels, scores, self.cost, self.amount, self.min_channels, self.unit)
        return search.solve()

    def readers(self) -> list[Reader]:
        """The dims of parameters along which a channel that may go is read."""
        read: dict[tuple[str, int], set[int]] = {}
        for each in self.channels.reads:
            ids = each.b_label.ids.reshape(-1)
            read.setdefault(self.channels.reader(each), set()).update(self.channels.of(ids).tolist())
        return [
            Reader(slot.name, slot.dim, slot.channels)
            for slot in self.channels.slots
            if not read.get((slot.name, slot.dim), set()).isdisjoint(slot.channels[self.free[slot.channels]].tolist())
        ]


def widths_of(module: nn.Module, example: Example, budget: Budget, restrict: Restrict, min_channels: int) -> Widths:
    """Survey a model: training may leave any number of the channels that may go.

    Channels that two activations read (the scores of attention), or that are summed up, stay: no weight could ignore
    them.
    """
    channels = survey(module, example, restrict)
    for numbers in (one_of_each, uneven):
        channels = settle(module, example, channels, numbers(channels))
    weightless = _read_without_weights(channels)
    unread = {
        group.name: "no single weight reads it"
        for group in channels.groups
        if not group.frozen and not weightless.isdisjoint(group.channels.tolist())
    }
    channels = channels.freeze(unread) if unread else channels
    cost = COSTS[budget.unit](module, channels)
    whole = float(cost.terms(np.ones(channels.count)).sum())
    amount = budget.amount * whole if budget.amount <= 1 else budget.amount
    return Widths(channels, cost, amount, budget.unit, max(PAIR, min_channels))


def _read_without_weights(channels: Channels) -> set[int]:
    found = {channel for end in channels.sums for channel in channels.of(end.label.ids.reshape(-1)).tolist()}
    for read in channels.reads:
        if not channels.reader(read)[0]:
            found.update(channels.of(read.a_label.ids.reshape(-1)).tolist())
    return found
