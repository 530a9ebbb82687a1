"""Meeting a budget: which channels to remove so that the cost is at most the limit, and close to it.

The search walks one order of the channels, worst first, and never runs the model: cost is a polynomial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunecli.errors import InputError
from prunecli.graph.channels import Bools, Channels, Group, Ints
from prunecli.surgery.plan import repair
from prunecli.units import human, percent

Cost = Callable[[Bools], float]
ROUNDING_SLACK = 0.01  # how much of the whole cost rounding may leave unused


@dataclass(frozen=True)
class Search:
    """One budget search.

    Attributes:
        channels: the channels of the model.
        scores: (channels,) how much each matters.
        cost: of a set of kept channels.
        limit: absolute, in units of `cost`.
        min_channels: what every slot keeps at least.
        unit: name of the budget, for messages.
        whole: what shares in messages refer to; the cost of all channels by default.
        show: an amount of `cost` in words.
    """

    channels: Channels
    scores: NDArray[np.float64]
    cost: Cost
    limit: float
    min_channels: int = 1
    unit: str = "cost"
    whole: float | None = None
    show: Callable[[float], str] = human

    def solve(self, round_to: int = 1) -> Bools:
        """(channels,) what to remove.

        Raises:
            InputError: even with everything removed that may go, the cost is above the limit.
        """
        order = self._order()
        least = self.least()
        if least > self.limit:
            full = self.whole or self.cost(np.ones(self.channels.count, dtype=np.bool_))
            raise InputError(
                f"the {self.unit} budget {percent(self.limit / full)} cannot be met: "
                f"the least possible is {percent(least / full)} ({self.show(least)} of {self.show(full)})",
                hint=f"keep {np.ceil(1e4 * least / full) / 1e2:.2f} % or more, or exclude fewer layers",
            )
        removed = self._give_back(self._remove(order, self._fewest(order)), order)
        if round_to > 1:
            removed = self._rounded(removed, order, round_to)
        return removed

    def least(self) -> float:
        """The cost with everything removed that may go."""
        order = self._order()
        return self._cost(self._remove(order, len(order)))

    def _order(self) -> Ints:
        """Channels that may go, worst first; ties are broken by index."""
        live = [group.channels for group in self.channels.groups if not group.frozen]
        members = np.sort(np.concatenate(live)) if live else np.zeros(0, dtype=np.int64)
        ordered: Ints = members[np.argsort(self.scores[members], kind="stable")]
        return ordered

    def _remove(self, order: Ints, count: int) -> Bools:
        removed = np.zeros(self.channels.count, dtype=np.bool_)
        removed[order[:count]] = True
        return repair(self.channels, removed, order[::-1], self.min_channels)

    def _cost(self, removed: Bools) -> float:
        return self.cost(~removed)

    def _fewest(self, order: Ints) -> int:
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if self._cost(self._remove(order, middle)) <= self.limit:
                high = middle
            else:
                low = middle + 1
        return low

    def _give_back(self, removed: Bools, order: Ints) -> Bools:
        """Return the best of the removed channels as long as the limit holds.

        Channels of one group cost the same, and what is given back only makes the others dearer: a group that
        did not fit once is left alone.
        """
        group_of = np.zeros(self.channels.count, dtype=np.int64)
        for number, group in enumerate(self.channels.groups):
            group_of[group.channels] = number
        full: set[int] = set()
        for channel in order[::-1].tolist():
            if not removed[channel] or group_of[channel] in full:
                continue
            trial = removed.copy()
            trial[channel] = False
            trial = repair(self.channels, trial, order[::-1], self.min_channels) if self.channels.blocks else trial
            if self._cost(trial) <= self.limit:
                removed = trial
            else:
                full.add(int(group_of[channel]))
        return removed

    def _rounded(self, removed: Bools, order: Ints, multiple: int) -> Bools:
        """Widths as multiples where that still meets the limit and leaves little of it unused."""
        groups = [g for g in self.channels.groups if not g.frozen and len(g.channels) >= 2 * multiple]
        trial = removed
        for group in groups:
            kept = int((~trial[group.channels]).sum())
            trial = self._resize(trial, group, max(multiple, round(kept / multiple) * multiple), order)
        full = self._cost(np.zeros_like(removed))
        while self._cost(trial) > self.limit:
            smaller = self._cheapest_step(trial, groups, -multiple, order)
            if smaller is None:
                return removed
            trial = smaller
        while (larger := self._cheapest_step(trial, groups, multiple, order)) is not None:
            trial = larger
        return trial if self._cost(trial) >= self.limit - ROUNDING_SLACK * full else removed

    def _cheapest_step(self, removed: Bools, groups: list[Group], step: int, order: Ints) -> Bools | None:
        """Resize one group by a multiple: down where the lost scores are least per cost, up where they are most."""
        now = self._cost(removed)
        best: tuple[float, Bools] | None = None
        for group in groups:
            kept = int((~removed[group.channels]).sum())
            if not abs(step) <= kept + step <= len(group.channels):
                continue
            trial = self._resize(removed, group, kept + step, order)
            cost, moved = self._cost(trial), float(self.scores[trial != removed].sum())
            if cost == now or (step > 0 and cost > self.limit):
                continue
            loss = moved / abs(now - cost) * (1 if step < 0 else -1)
            if best is None or loss < best[0]:
                best = (loss, trial)
        return None if best is None else best[1]

    def _resize(self, removed: Bools, group: Group, width: int, order: Ints) -> Bools:
        ranked = group.channels[np.argsort(-self.scores[group.channels], kind="stable")]
        trial = removed.copy()
        trial[group.channels] = True
        trial[ranked[:width]] = False
        return repair(self.channels, trial, order[::-1], self.min_channels)
