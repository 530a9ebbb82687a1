"""Which channels go: the constraints that any choice must satisfy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunecli.arrays import Bools, Ints
from prunecli.graph.channels import Channels
from prunecli.surgery.pace import kernel_width

PAIR = 2  # a dim of length 1 is broadcast, and no longer told from a constant
ALIGNED = 8  # numbers of two bytes in the 16 that grouped matrix products step by


def of_each(channels: Channels, chosen: Callable[[Ints], Ints]) -> Bools:
    """(channels,) what is chosen of each group that can be pruned, as far as all constraints allow."""
    removed = np.zeros(channels.count, dtype=np.bool_)
    for group in channels.groups:
        if not group.frozen:
            removed[chosen(group.channels)] = True
    return repair(channels, removed)


def repair(channels: Channels, removed: Bools, order: Ints | None = None, min_channels: int = 1) -> Bools:
    """Give back channels until the choice is legal; never removes more.

    Legal: nothing frozen goes, every slot keeps `min_channels`, every row of every block keeps equally many (of those
    that are never alone, every slot and row two),
    every group of a convolution as many as `kernel_width` says, every aligned row a multiple of `ALIGNED`.

    Args:
        channels: the channels of the model.
        removed: (channels,) the wish.
        order: channels, best first: the best of the removed ones is given back first.
        min_channels: what each slot keeps at least (all of it, where it has fewer).
    """
    removed = removed & ~channels.frozen
    rank = np.arange(channels.count)
    if order is not None:
        rank = np.full(channels.count, channels.count)
        rank[order] = np.arange(len(order))
    changed = True
    while changed:
        changed = _keep_enough(channels, removed, rank, min_channels) | _even_out(channels, removed, rank)
    return removed


def _keep_enough(channels: Channels, removed: Bools, rank: Ints, least: int) -> bool:
    changed = False
    members = channels.slot_members
    pairs = members @ channels.never_alone.astype(np.int64) > 0
    wanted = np.minimum(np.where(pairs, max(least, PAIR), least), np.diff(members.indptr))
    missing = wanted - members @ (~removed).astype(np.int64)
    for slot in np.flatnonzero(missing > 0):
        own = members.indices[members.indptr[slot] : members.indptr[slot + 1]].astype(np.int64)
        changed |= _give_back(own[None], wanted[slot] - (~removed[own[None]]).sum(axis=1), removed, rank)
    return changed


def _even_out(channels: Channels, removed: Bools, rank: Ints) -> bool:
    changed = False
    for rows in channels.blocks:
        least = PAIR if channels.never_alone[rows].any() else 1
        changed |= _raise_to(max(int((~removed[rows]).sum(axis=1).max()), least), rows, removed, rank)
    for rows in channels.filters:
        most = kernel_width(int((~removed[rows]).sum(axis=1).max()))
        changed |= _raise_to(min(most, rows.shape[1]), rows, removed, rank)
    for rows in channels.aligned:
        for row in rows:
            multiple = -(-int((~removed[row]).sum()) // ALIGNED) * ALIGNED
            changed |= _raise_to(min(multiple, len(row)), row[None], removed, rank)
    return changed


def _raise_to(count: int, rows: Ints, removed: Bools, rank: Ints) -> bool:
    """Every row keeps at least so many."""
    missing = count - (~removed[rows]).sum(axis=1)
    rows, missing = rows[missing > 0], missing[missing > 0]
    if len(np.unique(rows)) == rows.size:
        return _give_back(rows, missing, removed, rank)
    changed = False
    for row in rows:  # what one of them gets back is there for those that share it
        lacking = count - (~removed[row[None]]).sum(axis=1)
        changed |= _give_back(np.unique(row)[None], lacking, removed, rank)
    return changed


def _give_back(rows: Ints, missing: Ints, removed: Bools, rank: Ints) -> bool:
    """Of each row, the best that went, as many as are missing; no channel is in a row twice, or in two rows."""
    rows = np.sort(rows, axis=1)
    gone = removed[rows]
    order = np.argsort(np.where(gone, rank[rows], len(rank) + 1), axis=1, kind="stable")
    counts = np.minimum(missing, gone.sum(axis=1))
    chosen = np.take_along_axis(rows, order, axis=1)[np.arange(rows.shape[1]) < counts[:, None]]
    removed[chosen] = False
    return len(chosen) > 0
