"""Trial cuts: what no tape can see (a literal in Python) is found by trying, on the meta device.

A cut is good when the smaller model runs and its tape brings no two channels together that were apart:
then every position still meets its partner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from prunecli.graph.channels import Bools, Channels, Group, components, walk
from prunecli.graph.labels import Book
from prunecli.graph.tape import Example, record, shadow
from prunecli.surgery.apply import cut
from prunecli.surgery.plan import repair


def probe(module: nn.Module, example: Example, channels: Channels, removed: Bools) -> str:
    """Why this cut would break the model, or an empty string."""
    smaller, _ = cut(shadow(module), channels, removed, device="meta")
    try:
        tape = record(smaller, example)
    except Exception as error:
        return f"the cut model does not run: {_first_line(error)}"
    shapes = [[t.shapes[i] for i in t.outputs] for t in (channels.tape, tape)]
    if shapes[0] != shapes[1]:
        return f"the outputs change their shape from {shapes[0]} to {shapes[1]}"
    book = Book(next_id=channels.count)
    slots = {(slot.name, slot.dim): torch.from_numpy(slot.channels[~removed[slot.channels]]) for slot in channels.slots}
    walk(tape, {k: ids for k, ids in slots.items() if len(ids) > 1}, book)
    merged = components(book.next_id, book.ties)[: channels.count]
    live = ~channels.frozen & ~removed
    if len(np.unique(merged[live])) < int(live.sum()):
        return "channels meet that did not meet before the cut"
    return ""


def settle(module: nn.Module, example: Example, channels: Channels, removed: Bools | None = None) -> Channels:
    """Freeze the groups whose cut breaks the model; bisection finds them.

    Args:
        module: the model before the cut.
        example: one input.
        channels: of the model.
        removed: (channels,) the cut that is tried; by default half of every group.

    Returns:
        Channels in which that cut, as far as it is still allowed, does not break the model; the same object
        where nothing had to be frozen.
    """
    live = [group for group in channels.groups if not group.frozen]
    wish = halves(channels) if removed is None else removed
    touched = [group for group in live if wish[group.channels].any()]
    broken: dict[str, str] = {}
    _Sift(module, example, channels, wish, broken).search(touched)
    return channels.freeze(broken) if broken else channels


@dataclass(frozen=True)
class _Sift:
    module: nn.Module
    example: Example
    channels: Channels
    wish: Bools
    broken: dict[str, str]

    def search(self, groups: list[Group]) -> None:
        """Put the groups that break the model into `broken`; all of them where only their union does."""
        reason = probe(self.module, self.example, self.channels, self._part(groups)) if groups else ""
        if not reason:
            return
        known = len(self.broken)
        middle = len(groups) // 2
        if middle:
            self.search(groups[:middle])
            self.search(groups[middle:])
        if len(self.broken) == known:
            self.broken.update({group.name: reason for group in groups})

    def _part(self, groups: list[Group]) -> Bools:
        """The part of the cut that lies in some groups."""
        inside = np.zeros(self.channels.count, dtype=np.bool_)
        for group in groups:
            inside[group.channels] = True
        return repair(self.channels, self.wish & inside)


def halves(channels: Channels) -> Bools:
    """Every second channel of each group that can be pruned, as far as all constraints allow."""
    removed = np.zeros(channels.count, dtype=np.bool_)
    for group in channels.groups:
        if not group.frozen:
            removed[group.channels[1::2] if len(group.channels) > 1 else group.channels] = True
    return repair(channels, removed)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]
