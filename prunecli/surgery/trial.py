"""Trial cuts: what no tape can see (a literal in Python) is found by trying.

A cut is good when the smaller model runs, every part of a tensor holds the channels that it held before, and no two
channels come together that were apart: then every position still meets its partner.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from prunecli.arrays import Bools, Ints
from prunecli.graph.channels import Channels, components, walk
from prunecli.graph.labels import Book, Labels
from prunecli.graph.tape import Example, ForwardError, Op, Tape, flatten, record_private
from prunecli.surgery.apply import cut
from prunecli.surgery.forecast import PART_ALONG, Forecast

PARTS = {*PART_ALONG, "aten.diagonal"}  # ops that take parts of a tensor at positions that Python code names


@dataclass(frozen=True)
class Trouble:
    """Why a cut would break the model, and in which module."""

    reason: str
    module: str = ""


def trial(module: nn.Module, example: Example, channels: Channels, removed: Bools) -> Trouble | None:
    """What would go wrong with this cut, or None."""
    forecast = Forecast(channels, removed)
    if forecast.is_plain and forecast.comes_true(module, example):
        return None
    return inspected(module, example, forecast)


def inspected(module: nn.Module, example: Example, forecast: Forecast) -> Trouble | None:
    """What is wrong with the smaller model; nothing is computed where shapes tell, on the meta device."""
    if forecast.channels.tape.needs_data:
        smaller, _ = cut(module, forecast.channels, forecast.removed)
    else:
        smaller = forecast.outline(module)
    try:
        tape = record_private(smaller, example)
    except ForwardError as error:
        return Trouble(f"the cut {error.problem.removeprefix('the ')}", error.module)
    found = _Trial(forecast, tape)
    checks = (found.outputs, found.sizes, found.numbers, found.meetings, found.parts)
    return next((trouble for check in checks if (trouble := check())), None)


@dataclass(frozen=True)
class _Trial:
    """The forward pass of the smaller model beside that of the model.

    Attributes:
        forecast: what it should look like.
        tape: of the smaller model.
    """

    forecast: Forecast
    tape: Tape

    @property
    def channels(self) -> Channels:
        """Of the model before the cut."""
        return self.forecast.channels

    @property
    def removed(self) -> Bools:
        """(channels,) the cut."""
        return self.forecast.removed

    @property
    def data_decides(self) -> bool:
        """Whether the values of tensors decide on the number of results, on sizes and on counts."""
        return self.channels.tape.needs_data

    @cached_property
    def modules(self) -> list[tuple[str, list[Op], list[Op]]]:
        """Path of each module, its ops, and its ops after the cut."""
        after = self.tape.by_module()
        return [(path, ops, after.get(path, [])) for path, ops in self.channels.tape.by_module().items()]

    def outputs(self) -> Trouble | None:
        """The model's outputs keep their shapes."""
        before, after = ([t.shapes[i] for i in t.outputs] for t in (self.channels.tape, self.tape))
        if before == after or self.data_decides:
            return None
        return Trouble(f"the outputs change their shape from {before} to {after}")

    def sizes(self) -> Trouble | None:
        """Dims have as many positions as channels that stay, those without channels as many as before.

        A literal head width would make other heads of what is left; a size that follows another tensor's, less of it.
        """
        if self.data_decides:
            return None
        used = self.forecast.used
        for path, ops, now in self.modules:
            pairs = zip(ops, now, strict=False)  # what follows another op is a copy more or less
            for old, new in itertools.takewhile(lambda pair: pair[0].name == pair[1].name, pairs):
                values = zip(old.outputs, new.outputs, strict=False)
                if any(self._resized(*pair) for pair in values if pair[0] in used):
                    return Trouble(f"a dim changes its size otherwise than its channels at {old.where}", path)
        return None

    def _resized(self, old: int, new: int) -> bool:
        """Whether a value has another size along some dim than the channels there say."""
        return any(a != b for a, b in zip(self.forecast.shapes[old], self.tape.shapes[new], strict=False))

    def numbers(self) -> Trouble | None:
        """Factors and summands stay: a scale that follows the width would change them."""
        for path, ops, now in self.modules:
            tapes = (self.channels.tape, ops), (self.tape, now)
            before, after = ([(op, n) for op in each if (n := self._numbers(tape, op))] for tape, each in tapes)
            for (old, numbers), (_, others) in zip(before, after, strict=False):
                if numbers != others:
                    return Trouble(f"a number follows the width at {old.where}", path)
            if len(before) != len(after) and not self.data_decides:
                return Trouble(f"other numbers are used after the cut in {path or 'the model'}", path)
        return None

    def _numbers(self, tape: Tape, op: Op) -> list[complex]:
        """All floats, and integers where they are neither sizes nor counts that data decides on."""
        kinds = (int, float) if op.kind.pointwise and not self.data_decides else (float,)
        told = [leaf for leaf in flatten((op.args, dict(op.kwargs))) if type(leaf) in kinds]
        in_tensors = (tape.numbers[ref.index] for ref in op.refs if ref.index in tape.numbers)
        return told + [number for number in in_tensors if type(number) is float or not self.data_decides]

    @cached_property
    def _walked(self) -> tuple[dict[int, Labels], Ints]:
        """Labels on the tape, and the component of each id; ids up to the number of channels are channels."""
        book = Book(next_id=self.channels.count, through_norms=bool(self.channels.mixed))
        stay = ((slot.name, slot.dim, slot.channels[~self.removed[slot.channels]]) for slot in self.channels.slots)
        slots = {(name, dim): _by_position(ids, book) for name, dim, ids in stay if len(ids) > 1}
        labels = walk(self.tape, slots, book)
        return labels, components(book.next_id, book.ties)

    def meetings(self) -> Trouble | None:
        """No two channels are tied that were not before."""
        _, merged = self._walked
        live = ~self.channels.frozen & ~self.removed
        if len(np.unique(merged[: self.channels.count][live])) < int(live.sum()):
            return Trouble("channels meet that did not meet before the cut")
        return None

    def parts(self) -> Trouble | None:
        """What takes a part of a tensor takes the same channels of it, less those that went."""
        for path, ops, now in self.modules:
            before, after = ([op for op in each if op.name in PARTS] for each in (ops, now))
            if len(before) != len(after) and not self.data_decides:
                return Trouble(f"other parts are taken after the cut in {path or 'the model'}", path)
            for old, new in zip(before, after, strict=False):
                if any(self._holds_others(*pair) for pair in zip(old.outputs, new.outputs, strict=False)):
                    return Trouble(f"cut at a fixed position at {old.where}", path)
        return None

    def _holds_others(self, old: int, new: int) -> bool:
        """Whether a value holds other channels of parameters along some dim than before; one alone has no label."""
        labels, merged = self._walked
        ids = {label.axis: label.ids for label in labels.get(new, ())}
        shape = self.tape.shapes[new]
        for label in self.channels.labels.get(old, ()):
            if label.axis >= len(shape) or shape[label.axis] < 2:
                continue
            channels = self.channels.of(label.ids)
            stay = merged[channels[~self.removed[channels]]]
            here = merged[ids[label.axis]] if label.axis in ids else merged[:0]
            if self._known(stay) != self._known(here):
                return True
        return False

    def _known(self, merged: Ints) -> set[int]:
        return set(merged[self._in_parameters[merged]].tolist())

    @cached_property
    def _in_parameters(self) -> Bools:
        """(components,) where a channel of some parameter is in it that is nowhere left alone: that has no label."""
        _, merged = self._walked
        found = np.zeros(int(merged.max()) + 1, dtype=np.bool_)
        found[merged[: self.channels.count][self.channels.slot_members.getnnz(axis=0) > 0]] = True
        left = (slot.channels[~self.removed[slot.channels]] for slot in self.channels.slots)
        found[[merged[channels[0]] for channels in left if len(channels) == 1]] = False
        return found


def _by_position(channels: Ints, book: Book) -> Ints:
    """Ids of the positions of a dim: their channels; where that is one for all, fresh ones tied to it, which labels
    tell apart.
    """
    if channels[0] != channels[-1] or (channels != channels[0]).any():
        return channels
    positions = book.fresh(len(channels))
    book.tie(positions, channels)
    return positions
