"""Blocks: arrays (rows, n) of channels of which every row keeps equally many."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from prunecli.arrays import Bools, Ints

Parts = frozenset[tuple[int, int]]  # how many rows of which block
NONE: Parts = frozenset()


def refined(blocks: Sequence[Ints]) -> list[Ints]:
    """The same demands on rows as short as they can be.

    Where the rows of a block are made of rows of others, as thirds are of heads that are equally wide, it says nothing
    new, or that those are equally wide, too. Kept as it is, what evens out thirds would make heads uneven, and so on.
    """
    known = _Known()
    for block in sorted(blocks, key=lambda block: block.shape[1]):
        rows = np.sort(block, axis=1)
        parts = {known.parts_of(row) for row in rows}
        if NONE in parts:
            known.add(rows)
        elif len(parts) > 1:
            pairs = [*itertools.chain(*parts)]
            alike = len(pairs) == len(parts) and len({count for _, count in pairs}) == 1
            known.add([row for number, _ in pairs for row in known.rows[number].values()] if alike else rows)
    return [np.stack([*rows.values()]) for rows in known.rows.values() if len(rows) > 1]


def held(blocks: Sequence[Ints], frozen: Bools) -> dict[int, int]:
    """Channels that must stay since as many frozen ones do: {channel: one of those}."""
    found: dict[int, int] = {}
    frozen, changed = frozen.copy(), True
    while changed:
        changed = False
        for rows in blocks:
            whole = frozen[rows].all(axis=1)
            if whole.any() and not whole.all():
                free = rows[~frozen[rows]]
                found.update(dict.fromkeys(free.tolist(), int(rows[whole][0, 0])))
                frozen[free] = changed = True
    return found


class _Known:
    """Blocks by number, their rows by their bytes; blocks that share a row are one."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[bytes, Ints]] = {}
        self._number_of: dict[bytes, int] = {}
        self._starting: dict[int, list[Ints]] = {}  # rows by their first channel
        self._numbers = itertools.count()

    def add(self, rows: Iterable[Ints]) -> None:
        """A block of sorted rows."""
        block = {row.tobytes(): row for row in rows}
        for key, row in block.items():
            if key not in self._number_of:
                self._starting.setdefault(int(row[0]), []).append(row)
        for number in {self._number_of[key] for key in block if key in self._number_of}:
            block |= self.rows.pop(number)
        number = next(self._numbers)
        self.rows[number] = block
        self._number_of.update(dict.fromkeys(block, number))

    def parts_of(self, row: Ints) -> Parts:
        """The shorter rows that a sorted row is made of, counted by block."""
        if int(row[0]) not in self._starting:  # as most
            return NONE
        found: Counter[int] = Counter()
        left = row if (np.diff(row) > 0).all() else row[:0]  # a channel may be there twice
        while len(left):
            part = next(
                (p for p in self._starting.get(int(left[0]), ()) if len(p) < len(row) and _within(p, left)), None
            )
            if part is None:
                return NONE
            found[self._number_of[part.tobytes()]] += 1
            left = left[~np.isin(left, part, assume_unique=True)]
        return frozenset(found.items())


def _within(part: Ints, row: Ints) -> bool:
    return bool(np.isin(part, row, assume_unique=True).all())
