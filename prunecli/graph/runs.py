"""Runs: ids in a row that are only ever tied as a whole, so that one node of a graph stands for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunecli.arrays import AnyInts, Bools, Ints

# Where channels are shuffled, runs come out too short to be worth the search.
_ROUNDS = 8  # of mirrored cuts
_SHORT = 4  # ids of a run, in the mean


@dataclass(frozen=True)
class Runs:
    """All ids, in runs.

    Attributes:
        count: number of ids.
        starts: (runs,) the first id of each, rising.
        first: (edges,) a run; it is tied to the one in `second`, place by place, which is as long.
        second: (edges,)
    """

    count: int
    starts: Ints
    first: AnyInts
    second: AnyInts

    def spread(self, labels: Ints) -> Ints:
        """(count,) the component of each id, from that of each run; both are numbered in order of what comes first."""
        lengths = np.diff(self.starts, append=self.count)
        leading = np.diff(np.maximum.accumulate(labels), prepend=-1) > 0  # of each component, the first run
        numbers = np.cumsum(lengths[leading]) - lengths[leading]
        spread: Ints = np.repeat(numbers[labels] - self.starts, lengths)
        spread += np.arange(self.count)
        return spread


def runs_of(count: int, ties: Sequence[tuple[Ints, ...]]) -> Runs:
    """The ids in [0, count) in the longest runs that the ties allow, or one by one where that would not help.

    Args:
        count: number of ids.
        ties: pairs of arrays of one shape, none of them empty; ids at the same place are tied.
    """
    tied = ([tie[side].ravel() for tie in ties] for side in (0, 1))
    first, second = (np.concatenate(ids, dtype=np.int32, casting="same_kind") for ids in tied)
    breaks = (np.diff(first) != 1) | (np.diff(second) != 1)
    places = np.concatenate([[0], np.flatnonzero(breaks) + 1])  # where pieces begin: ids in a row on both sides
    lengths = np.diff(places, append=len(first))
    sides = first[places], second[places]
    is_cut = None if len(places) * _SHORT > len(first) else _cuts(count, sides, lengths)
    if is_cut is None:
        return Runs(count, np.arange(count), first, second)
    begun = np.cumsum(is_cut, dtype=np.int32)  # runs up to each id
    begin, other = (begun[side] - 1 for side in sides)
    covered = begun[sides[0] + lengths] - 1 - begin
    steps = _counted(covered)
    return Runs(
        count, np.flatnonzero(is_cut[:-1]), np.repeat(begin, covered) + steps, np.repeat(other, covered) + steps
    )


def _cuts(count: int, sides: tuple[Ints, Ints], lengths: Ints) -> Bools | None:
    """(count + 1,) where runs begin: at the ends of all pieces, and wherever their other side is cut."""
    is_cut = np.zeros(count + 1, dtype=np.bool_)
    is_cut[[0, count]] = True
    for side in sides:
        is_cut[side] = is_cut[side + lengths] = True
    for _ in range(_ROUNDS):
        cuts = np.flatnonzero(is_cut)
        if len(cuts) * _SHORT > count:
            return None
        for here, there in (sides, sides[::-1]):
            begin, end = np.searchsorted(cuts, here, "right"), np.searchsorted(cuts, here + lengths, "left")
            inside = end - begin
            is_cut[cuts[np.repeat(begin, inside) + _counted(inside)] + np.repeat(there - here, inside)] = True
        if np.count_nonzero(is_cut) == len(cuts):
            return is_cut
    return None


def _counted(sizes: Ints) -> Ints:
    """0, 1, ... up to each size, one after the other."""
    ends = np.cumsum(sizes)
    counted: Ints = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
    return counted
