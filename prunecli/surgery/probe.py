"""Trial cuts: what no tape can see (a literal in Python) is found by trying, on the meta device.

A cut is good when the smaller model runs and its tape brings no two channels together that were apart:
then every position still meets its partner.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from prunecli.graph.channels import Bools, Channels, Group, components, trace, walk
from prunecli.graph.garbage import uncollected
from prunecli.graph.labels import Book, Split
from prunecli.graph.tape import Example, ForwardError, Op, Tape, flatten, record_private
from prunecli.surgery.apply import cut
from prunecli.surgery.fix import head_numbers
from prunecli.surgery.plan import repair

Restrict = Callable[[Channels], Channels]
Heads = dict[str, frozenset[int]]  # modules whose attention heads go as a whole, and how many they may have


@dataclass(frozen=True)
class Trouble:
    """Why a cut would break the model, and in which module."""

    reason: str
    module: str = ""


def probe(module: nn.Module, example: Example, channels: Channels, removed: Bools) -> Trouble | None:
    """What would go wrong with this cut, or None."""
    smaller, _ = cut(module, channels, removed, device=None if channels.tape.needs_data else "meta")
    try:
        tape = record_private(smaller, example)
    except ForwardError as error:
        return Trouble(f"the cut {error.problem.removeprefix('the ')}", error.module)
    shapes = [[t.shapes[i] for i in t.outputs] for t in (channels.tape, tape)]
    if shapes[0] != shapes[1] and not channels.tape.needs_data:  # where data decides, the number of results does, too
        return Trouble(f"the outputs change their shape from {shapes[0]} to {shapes[1]}")
    if change := _changed(channels, tape, _rewritten(module, smaller)):
        return change
    book = Book(next_id=channels.count, through_norms=bool(channels.mixed))
    slots = {(slot.name, slot.dim): torch.from_numpy(slot.channels[~removed[slot.channels]]) for slot in channels.slots}
    walk(tape, {k: ids for k, ids in slots.items() if len(ids) > 1}, book)
    merged = components(book.next_id, book.ties)[: channels.count]
    live = ~channels.frozen & ~removed
    if len(np.unique(merged[live])) < int(live.sum()):
        return Trouble("channels meet that did not meet before the cut")
    return None


def _changed(channels: Channels, tape: Tape, rewritten: Collection[str]) -> Trouble | None:
    """What must stay as it is, whatever is cut: sizes of dims that hold no channels, and numbers in formulas.

    A literal head width would make other heads of what is left; a scale that follows the width would change them.
    Where data decides, it decides on sizes and counts, too. `rewritten` names modules that compute in another way now.
    """
    before, after = channels.tape.by_module(), tape.by_module()
    data, used = channels.tape.needs_data, {ref.index for op in channels.tape.ops for ref in op.refs}
    for path in (path for path in before if path not in rewritten):
        ops, now = before[path], after.get(path, [])
        pairs = zip(ops, now, strict=False)
        for old, new in itertools.takewhile(lambda pair: pair[0].name == pair[1].name, pairs):
            if not data and any(_resized(channels, tape, *sizes) for sizes in _read(old, new, used)):
                return Trouble(f"a dim that holds no channels changes its size at {old.where}", path)
        # what follows is a copy more or less, which has no numbers
        used_before, used_now = ([(op, n) for op in each if (n := _numbers(op, data))] for each in (ops, now))
        for (old, numbers), (_, others) in zip(used_before, used_now, strict=False):
            if numbers != others:
                return Trouble(f"a number follows the width at {old.where}", path)
        if len(used_before) != len(used_now) and not data:
            return Trouble(f"other numbers are used after the cut in {path or 'the model'}", path)
    return None


def _read(old: Op, new: Op, used: set[int]) -> list[tuple[int, int]]:
    """Outputs that somebody reads, of an op and of the same one after the cut."""
    return [(a, b) for a, b in zip(old.outputs, new.outputs, strict=False) if a in used]


def _resized(channels: Channels, tape: Tape, old: int, new: int) -> bool:
    """Whether a value has another size along a dim that holds no channels."""
    free = {label.axis for label in channels.labels.get(old, ())}
    pairs = enumerate(zip(channels.tape.shapes[old], tape.shapes[new], strict=False))
    return any(a != b for dim, (a, b) in pairs if dim not in free)


def _rewritten(module: nn.Module, smaller: nn.Module) -> set[str]:
    """Modules that are of another class after the cut: attention that has fewer heads."""
    kinds = {path: type(part) for path, part in module.named_modules()}
    return {path for path, part in smaller.named_modules() if kinds[path] is not type(part)}


def _numbers(op: Op, by_data: bool) -> list[float]:
    """Factors and summands: all floats, and integers where they are neither sizes nor counts that data decides on."""
    kinds = (int, float) if torch.Tag.pointwise in op.func.tags and not by_data else (float,)
    return [leaf for leaf in flatten((op.args, dict(op.kwargs))) if type(leaf) in kinds]


def only_whole(module: nn.Module) -> Heads:
    """Torch's own attention: its scale follows from the width of a head, so that heads cannot get narrower."""
    return {p: head_numbers(m) for p, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)}


def whole_as_well(module: nn.Module, splits: Iterable[Split]) -> Heads:
    """The modules that split channels into heads, which may go as a whole instead."""
    return {split.module: head_numbers(module.get_submodule(split.module)) for split in splits}


@uncollected()
def survey(
    module: nn.Module,
    example: Example,
    restrict: Restrict = lambda channels: channels,
    *,
    through_norms: bool = False,
) -> Channels:
    """The channels of a model, with what breaks it frozen.

    Attention whose heads cannot get narrower is tried again with heads that go as a whole.

    Args:
        module: stays as it is.
        example: one input.
        restrict: freezes groups that must stay whole.
        through_norms: let channels go that a layer norm or a mean runs over.
    """

    def find(whole: Heads) -> Channels:
        return settle(module, example, restrict(trace(module, example, whole, through_norms=through_norms)))

    whole = only_whole(module)
    channels = find(whole)
    stuck = whole_as_well(module, [s for s in channels.splits if channels.frozen[channels.of(s.ids)].all()])
    if stuck.keys() <= whole.keys():
        return channels
    again = find(whole | stuck)
    return again if _free(again) > _free(channels) else channels


def _free(channels: Channels) -> int:
    """How many rows and columns of parameters can go."""
    return sum(int((~channels.frozen[slot.channels]).sum()) for slot in channels.slots)


def settle(module: nn.Module, example: Example, channels: Channels, removed: Bools | None = None) -> Channels:
    """Freeze the groups whose cut breaks the model.

    The module in which it breaks is suspected first, then everything; bisection finds the guilty.

    Args:
        module: the model before the cut.
        example: one input.
        channels: of the model.
        removed: (channels,) the cut that is tried; by default half of every group.

    Returns:
        Channels in which that cut, as far as it is still allowed, does not break the model; the same object
        where nothing had to be frozen.
    """
    sift = _Sift(module, example, channels, halves(channels) if removed is None else removed)
    bundles = sift.bundles()
    broken: dict[str, str] = {}
    while (trouble := sift.trouble(bundles)) is not None:
        suspects = sift.near(trouble.module, bundles)
        guilty = sift.search(suspects) or sift.search(bundles)
        guilty += sift.twins(guilty, bundles)
        broken |= {group.name: trouble.reason for bundle in guilty for group in bundle}
        bundles = [bundle for bundle in bundles if bundle[0].name not in broken]
    return channels.freeze(broken) if broken else channels


Bundle = list[Group]


@dataclass(frozen=True)
class _Sift:
    module: nn.Module
    example: Example
    channels: Channels
    wish: Bools

    def bundles(self) -> list[Bundle]:
        """Groups that the cut touches; those that must keep equal counts come together."""
        touched = [g for g in self.channels.groups if not g.frozen and self.wish[g.channels].any()]
        number_of = {int(c): number for number, group in enumerate(touched) for c in group.channels}
        ties = [
            torch.tensor(sorted({number_of[c] for c in rows.reshape(-1).tolist() if c in number_of}))
            for rows in self.channels.blocks
        ]
        together = components(len(touched), [(t[:1].expand(len(t) - 1), t[1:]) for t in ties if len(t) > 1])
        found: dict[int, Bundle] = {}
        for label, group in zip(together.tolist(), touched, strict=True):
            found.setdefault(label, []).append(group)
        return list(found.values())

    def trouble(self, bundles: list[Bundle]) -> Trouble | None:
        """What goes wrong when these alone are cut."""
        inside = np.zeros(self.channels.count, dtype=np.bool_)
        for group in itertools.chain(*bundles):
            inside[group.channels] = True
        removed = repair(self.channels, self.wish & inside)
        return probe(self.module, self.example, self.channels, removed) if removed.any() else None

    def near(self, module: str, bundles: list[Bundle]) -> list[Bundle]:
        """Those with a tensor in the module, or else in the nearest module around it."""
        while True:
            found = [bundle for bundle in bundles if any(self._lies_in(group, module) for group in bundle)]
            if found or not module:
                return found
            module = module.rpartition(".")[0]

    def _lies_in(self, group: Group, module: str) -> bool:
        return not module or any(self.channels.slots[s].name.startswith(f"{module}.") for s in group.slots)

    def twins(self, guilty: list[Bundle], bundles: list[Bundle]) -> list[Bundle]:
        """Bundles of the same place in other layers; they go with the guilty unless all of them are innocent."""
        kinds = {self._kind(bundle) for bundle in guilty}
        found = [
            bundle for bundle in bundles if not any(bundle is known for known in guilty) and self._kind(bundle) in kinds
        ]
        return found if self.trouble(found) is not None else []

    def _kind(self, bundle: Bundle) -> str:
        """The tensors of a bundle without the numbers of their layers."""
        names = {self.channels.slots[s].name for g in bundle for s in g.slots}
        return re.sub(r"\d+", "#", " ".join(sorted(names)))

    def search(self, bundles: list[Bundle]) -> list[Bundle]:
        """The guilty ones; all where only their union breaks the model, none where even that does not."""
        if not bundles or self.trouble(bundles) is None:
            return []
        middle = len(bundles) // 2
        if not middle:
            return bundles
        return self.search(bundles[:middle]) + self.search(bundles[middle:]) or bundles


def halves(channels: Channels) -> Bools:
    """Every second channel of each group that can be pruned, as far as all constraints allow."""
    removed = np.zeros(channels.count, dtype=np.bool_)
    for group in channels.groups:
        if not group.frozen:
            removed[group.channels[1::2] if len(group.channels) > 1 else group.channels] = True
    return repair(channels, removed)
