"""What a forward pass should look like after a cut, as the channels say.

Most cuts are plain: op for op the smaller model does what the model did, on what is left. Then it is enough to see that
it does, which takes a fraction of the time of a second tape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from prunecli.arrays import Bools
from prunecli.graph.channels import Channels
from prunecli.graph.follow import follows
from prunecli.graph.labels import Label
from prunecli.graph.rules.layout import VIEWS
from prunecli.graph.rules.norm import MIXING, REDUCTIONS
from prunecli.graph.rules.pattern import PATTERNS
from prunecli.graph.rules.pointwise import ELEMENTWISE
from prunecli.graph.tape import Example, Op
from prunecli.surgery.apply import cut

# Ops that treat channels in order, one like the other, beside those that are pointwise.
PLAIN = {
    "aten.convolution", "aten.native_batch_norm", "aten.cat", "aten.permute", "aten.transpose", "aten.t",
    "aten.unsqueeze", "aten.squeeze", *VIEWS, *PATTERNS, *REDUCTIONS, *MIXING, *ELEMENTWISE,
}  # fmt: skip
TOLD = {"aten.convolution": 8, **dict.fromkeys(VIEWS, 1)}  # the argument that follows from the shapes


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
    def _labels(self) -> list[tuple[int, Label, int]]:
        """Every label: the value that it is on, itself, and how many positions stay along its axis."""
        labels = [(index, label) for index, labels in self.channels.labels.items() for label in labels]
        if not labels:
            return []
        rows = [label.rows()[0] for _, label in labels]
        stays = (~self.removed).astype(np.int64)[self.channels.of(np.concatenate(rows))]
        kept = np.add.reduceat(stays, np.cumsum([0, *map(len, rows[:-1])]))
        return [(*pair, count) for pair, count in zip(labels, kept.tolist(), strict=True)]

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each value, as its channels say."""
        shapes = [*map(list, self.channels.tape.shapes)]
        for index, label, kept in self._labels:
            shapes[index][label.axis] = kept
        return [*map(tuple, shapes)]

    @cached_property
    def used(self) -> set[int]:
        """Values that ops read which must run after the cut."""
        return {ref.index for op in self.channels.tape.needed for ref in op.refs}

    @property
    def is_plain(self) -> bool:
        """Whether all ops that get fewer channels give for those what they gave, as long as the shapes are right.

        Channels that such ops tie are tied in order, so that after the cut each still meets its partner.
        """
        tape, fewer = self.channels.tape, set[int]()
        for index, label, kept in self._labels:
            size = label.ids.shape[label.axis]
            if kept < size:
                if kept == 1 or label.ids.size > size:  # one alone is broadcast; rows of channels may be cut otherwise
                    return False
                fewer.add(index)
        touched = (op for op in tape.ops if not fewer.isdisjoint((*(ref.index for ref in op.refs), *op.outputs)))
        return not tape.needs_data and all(op.kind.pointwise or self._is_plain(op) for op in touched)

    def _is_plain(self, op: Op) -> bool:
        """Whether it treats channels in order; a convolution with groups, if it is of the same sort after the cut."""
        if op.name != "aten.convolution" or op.args[8] == 1:
            return op.name in PLAIN
        *_, transposed, _, groups = op.args
        before, after = (shapes[op.args[1].index] for shapes in (self.channels.tape.shapes, self.shapes))
        several = after[1] > 1 and min(before[0], after[0]) > groups
        return not transposed and (before[1] == 1 or several)

    def comes_true(self, module: nn.Module, example: Example) -> bool:
        """Whether the smaller model runs as foreseen, and its outputs keep their shapes."""
        tape, shapes = self.channels.tape, self.shapes
        if any(shapes[index] != tape.shapes[index] for index in tape.outputs):
            return False
        smaller, _ = cut(module, self.channels, self.removed, device="meta")
        return follows(smaller, example, tape, shapes, seen=self.used.union(tape.outputs), told=TOLD)
