"""Trial cuts: what no tape can see (a literal in Python) is found by trying, on the meta device.

A cut is good when the smaller model runs and its tape brings no two channels together that were apart:
then every position still meets its partner.
"""

from __future__ import annotations

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


def settle(module: nn.Module, example: Example, channels: Channels) -> Channels:
    """Freeze the groups whose cut breaks the model; bisection finds them.

    Returns:
        Channels in which half of every live group can go, all at once.
    """
    live = [group for group in channels.groups if not group.frozen]
    broken: dict[str, str] = {}
    _sift(module, example, channels, live, broken)
    return channels.freeze(broken) if broken else channels


def _sift(module: nn.Module, example: Example, channels: Channels, groups: list[Group], broken: dict[str, str]) -> None:
    reason = probe(module, example, channels, halves(channels, groups)) if groups else ""
    if not reason:
        return
    if len(groups) == 1:
        broken[groups[0].name] = reason
        return
    middle = len(groups) // 2
    _sift(module, example, channels, groups[:middle], broken)
    _sift(module, example, channels, groups[middle:], broken)


def halves(channels: Channels, groups: list[Group]) -> Bools:
    """Every second channel of each group, as far as the blocks allow."""
    removed = np.zeros(channels.count, dtype=np.bool_)
    for group in groups:
        removed[group.channels[1::2]] = True
    return repair(channels, removed)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]
