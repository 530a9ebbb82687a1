"""Meeting a budget: which channels to remove so that the cost is at most the limit, and close to it.

The search walks one order of the channels, worst first, and never runs the model: cost is a polynomial.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prunecli.arrays import Bools, Ints
from prunecli.errors import InputError
from prunecli.graph.channels import Channels, Group
from prunecli.surgery.plan import repair
from prunecli.units import human, percent

Cost = Callable[[Bools], float]
SLACK = 0.01  # how much of the whole cost may be left unused for the sake of widths that kernels like


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
        """(channels,) what to remove. Widths are such as kernels like where the limit can be met closely then.

        Raises:
            InputError: even with everything removed that may go, the cost is above the limit.
        """
        order = self._order()
        least = self.least()
        if least > self.limit:
            full = self.whole or self.cost(np.ones(self.channels.count, dtype=np.bool_))
            possible = f"keep {np.ceil(1e4 * least / full) / 1e2:.2f} % or more, or exclude fewer layers"
            raise InputError(
                f"the {self.unit} budget {percent(self.limit / full)} cannot be met: "
                f"the least possible is {percent(least / full)} ({self.show(least)} of {self.show(full)})",
                hint=possible if least < full else "prunecli analyze --why LAYER tells why nothing can go",
            )
        removed = self._give_back(self._remove(order, self._fewest(order)), order)
        if round_to > 1:
            live = [group for group in self.channels.groups if not group.frozen]
            large = [group for group in live if len(group.channels) >= 2 * round_to]
            rounded = (self._rounded(removed, groups, order, round_to) for groups in (live, large))
            removed = next((found for found in rounded if found is not None), removed)
        if self.channels.filters and not self._is_close(removed):
            freer = self._freer().solve(round_to)
            removed = max(removed, freer, key=lambda choice: (self._cost(choice) <= self.limit, self._cost(choice)))
        return removed

    def least(self) -> float:
        """The cost with everything removed that may go."""
        search, order = self._freer(), self._order()
        return self._cost(search._remove(order, len(order)))

    def _freer(self) -> Search:
        """With groups of convolutions of any width, also of those that their kernels are slow at."""
        return replace(self, channels=self.channels.of_any_width())

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

    def _is_close(self, removed: Bools) -> bool:
        """Whether the limit holds, and little is left of it."""
        return self.limit - SLACK * self._cost(np.zeros_like(removed)) <= self._cost(removed) <= self.limit

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
        demanding = bool(self.channels.blocks or self.channels.filters or self.channels.aligned)
        for channel in order[::-1].tolist():
            if not removed[channel] or group_of[channel] in full:
                continue
            trial = removed.copy()
            trial[channel] = False
            if demanding:
                trial = repair(self.channels, trial, order[::-1], self.min_channels)
            if self._cost(trial) <= self.limit:
                removed = trial
            else:
                full.add(int(group_of[channel]))
        return removed

    def _rounded(self, removed: Bools, groups: Sequence[Group], order: Ints, multiple: int) -> Bools | None:
        """Widths of some groups as multiples, or whole, but for those that fill up what is left of the limit.

        None where the limit cannot be met closely.
        """
        trial, widths = removed, [_widths(group, multiple) for group in groups]
        for group, allowed in zip(groups, widths, strict=True):
            kept = int((~trial[group.channels]).sum())
            trial = self._resize(trial, group, min(allowed, key=lambda width: abs(width - kept)), order)
        while self._cost(trial) > self.limit:
            smaller = self._cheapest_step(trial, groups, widths, -1, order)
            if smaller is None:
                return None
            trial = smaller
        while (larger := self._cheapest_step(trial, groups, widths, 1, order)) is not None:
            trial = larger
        return self._filled_up(trial, groups, order)

    def _filled_up(self, removed: Bools, groups: Sequence[Group], order: Ints) -> Bools | None:
        """Group by group as wide as the limit allows, that first which comes closest, until little is left of it."""
        while not self._is_close(removed):
            tried = [trial for group in groups if (trial := self._widest(removed, group, order)) is not None]
            if not tried:
                return None
            removed = max(tried, key=self._cost)
        return removed

    def _widest(self, removed: Bools, group: Group, order: Ints) -> Bools | None:
        """With one group as wide as the limit allows; None where that is no wider than now."""
        kept = int((~removed[group.channels]).sum())
        widths = range(kept + 1, len(group.channels) + 1)

        def costs_more(width: int) -> bool:
            return self._cost(self._resize(removed, group, width, order)) > self.limit

        count = bisect_left(widths, True, key=costs_more)
        return self._resize(removed, group, widths[count - 1], order) if count else None

    def _cheapest_step(
        self, removed: Bools, groups: Sequence[Group], widths: Sequence[list[int]], step: int, order: Ints
    ) -> Bools | None:
        """Resize one group by a step: down where the lost scores are least per cost, up where they are most."""
        now = self._cost(removed)
        best: tuple[float, Bools] | None = None
        for group, allowed in zip(groups, widths, strict=True):
            kept = int((~removed[group.channels]).sum())
            further = [width for width in allowed if (width - kept) * step > 0]
            if not further:
                continue
            trial = self._resize(removed, group, min(further, key=lambda width: abs(width - kept)), order)
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


def _widths(group: Group, multiple: int) -> list[int]:
    """Those that a group may have: multiples, and all of its channels."""
    size = len(group.channels)
    return sorted({*range(multiple, size + 1, multiple), size})
