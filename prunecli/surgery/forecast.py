"""What a forward pass should look like after a cut, as the channels say.

Most cuts are plain: op for op the smaller model does what the model did, on what is left. Then it is enough to see that
it does, which takes a fraction of the time of a second tape.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from prunecli.arrays import Bools
from prunecli.graph.channels import Channels
from prunecli.graph.follow import follows
from prunecli.graph.labels import Label
from prunecli.graph.rules.layout import SPLITS, VIEWS
from prunecli.graph.rules.norm import MIXING, REDUCTIONS
from prunecli.graph.rules.pattern import PATTERNS
from prunecli.graph.rules.pointwise import ELEMENTWISE
from prunecli.graph.tape import Example, Op
from prunecli.surgery.apply import outline

# Ops that treat channels in order, one like the other, beside those that are pointwise.
PLAIN = {
    "aten.convolution", "aten.native_batch_norm", "aten.cat", "aten.permute", "aten.transpose", "aten.t",
    "aten.unsqueeze", "aten.squeeze", "aten.expand", *VIEWS, *PATTERNS, *REDUCTIONS, *MIXING, *ELEMENTWISE,
}  # fmt: skip
# Ops that take parts of a tensor at positions that Python code names: the argument that says along which dim.
PART_ALONG = {
    "aten.slice": 1,
    "aten.select": 1,
    "aten.unbind": 1,
    "aten.split_with_sizes": 2,
    **dict.fromkeys(SPLITS, 2),
}
# The argument that follows from the shapes.
TOLD = {"aten.convolution": 8, **dict.fromkeys(("aten.expand", *VIEWS, *SPLITS), 1)}


@dataclass(frozen=True)
class Forecast:
    """What the forward pass of the smaller model should look like.

    Attributes:
        channels: of the model.
        removed: (channels,) the cut.
    """

    channels: Channels
    removed: Bools

    @cached_property
    def _kept(self) -> dict[int, int]:
        """How many positions stay along the axis of each label, by its id: many values have the same."""
        labels = {id(label): label for label in itertools.chain(*self.channels.labels.values())}
        if not labels:
            return {}
        rows = [label.rows()[0] for label in labels.values()]
        stays = (~self.removed)[self.channels.channel_of][np.concatenate(rows)]
        counts = np.add.reduceat(stays, np.cumsum([0, *map(len, rows[:-1])]), dtype=np.int64)
        return dict(zip(labels, counts.tolist(), strict=True))

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each value, as its channels say."""
        shapes = [*self.channels.tape.shapes]
        for index, labels in self._fewer.items():
            kept = {label.axis: self._kept[id(label)] for label in labels}
            shapes[index] = tuple([kept.get(dim, size) for dim, size in enumerate(shapes[index])])
        return shapes

    @cached_property
    def used(self) -> set[int]:
        """Values that ops read which must run after the cut."""
        return {ref.index for op in self.channels.tape.needed for ref in op.refs}

    @property
    def is_plain(self) -> bool:
        """Whether all ops that get fewer channels give for those what they gave, as long as the shapes are right.

        Channels that such ops tie are tied in order, so that after the cut each still meets its partner.
        """
        tape, fewer = self.channels.tape, self._fewer
        if tape.needs_data or not all(self._lies_in_order(index) for index in fewer):
            return False
        touched = (op for op in tape.ops if not fewer.keys().isdisjoint((*(r.index for r in op.refs), *op.outputs)))
        return all(op.kind.pointwise or self._is_plain(op) for op in touched)

    @cached_property
    def _fewer(self) -> dict[int, list[Label]]:
        """The values that lose channels, and the labels that do."""
        kept, found = self._kept, {}
        for index, labels in self.channels.labels.items():
            cut = [label for label in labels if kept[id(label)] < label.ids.shape[label.axis]]
            if cut:
                found[index] = cut
        return found

    def _lies_in_order(self, index: int) -> bool:
        """Whether what is left of a value lies in the order of its positions before the cut, and nothing alone.

        One alone is broadcast. Of several rows, those that lie side by side are as long as one another, those that
        take turns lose the same places.
        """
        for label in self._fewer[index]:
            if self._kept[id(label)] == 1:
                return False
            if not label.index_dims:
                continue
            stays = ~self.removed[self.channels.of(label.ids)]
            turns = tuple(dim for dim in label.index_dims if dim > label.axis)
            crossed = any(other.axis in label.index_dims for other in self._fewer[index])
            if crossed or np.ptp(stays.sum(label.axis)) or (stays.any(turns) != stays.all(turns)).any():
                return False
        return True

    def _is_plain(self, op: Op) -> bool:
        """Whether it treats channels in order; a convolution with groups, if it is of the same sort after the cut."""
        if op.name in PART_ALONG:
            return self._takes_as_before(op)
        if op.name != "aten.convolution" or op.args[8] == 1:
            return op.name in PLAIN
        *_, transposed, _, groups = op.args
        before, after = (shapes[op.args[1].index] for shapes in (self.channels.tape.shapes, self.shapes))
        several = after[1] > 1 and min(before[0], after[0]) > groups
        return not transposed and (before[1] == 1 or several)

    def _takes_as_before(self, op: Op) -> bool:
        """Whether the dim of which an op takes a part loses nothing, or is in equal parts as it was."""
        (source, *_), place = op.refs, PART_ALONG[op.name]
        dim = op.args[place] if len(op.args) > place else 0
        both = self.channels.tape.shapes, self.shapes
        before, after = (shapes[source.index][dim] for shapes in both)
        if before == after or op.name not in SPLITS:
            return before == after
        return all(len({shapes[index][dim] for index in op.outputs}) == 1 for shapes in both)

    def outline(self, module: nn.Module) -> nn.Module:
        """The smaller model on meta."""
        shapes = {name: self.shapes[index] for name, index in self.channels.tape.params.items()}
        return outline(module, shapes, self.channels, self.removed)

    def comes_true(self, module: nn.Module, example: Example) -> bool:
        """Whether the smaller model runs as foreseen, and its outputs keep their shapes."""
        tape, shapes = self.channels.tape, self.shapes
        if any(shapes[index] != tape.shapes[index] for index in tape.outputs):
            return False
        return follows(self.outline(module), example, tape, shapes, seen=self.used.union(tape.outputs), told=TOLD)
