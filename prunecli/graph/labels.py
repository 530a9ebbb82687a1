"""Labels: which channel each position of a tensor belongs to, and the book that collects what is learned.

A channel starts as one index of one dimension of one parameter. Ops tie channels together; everything
that cannot be followed is frozen, with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from prunecli.arrays import Bools, Ints


@dataclass(frozen=True)
class Label:
    """Channel ids over a tensor.

    Attributes:
        ids: int64, as many dims as the tensor, extent 1 where the id does not depend on that dim.
            Id 0 is a position that stays for ever.
        axis: the dim that gets shorter when a channel goes. Where `ids` varies along further
            dims, each of their rows must lose the same number of channels.
    """

    ids: Ints
    axis: int

    @property
    def index_dims(self) -> list[int]:
        """Dims other than the axis along which the ids vary."""
        if self.ids.size == self.ids.shape[self.axis]:  # as most do
            return []
        return [d for d, n in enumerate(self.ids.shape) if n > 1 and d != self.axis]

    def lifted(self, ndim: int) -> Label:
        """The same label on a tensor with leading dims of extent 1 (broadcasting)."""
        extra = ndim - self.ids.ndim
        return Label(self.ids.reshape((1,) * extra + self.ids.shape), self.axis + extra) if extra else self

    def rows(self) -> Ints:
        """Ids as (rows, channels): one row for each setting of the index dims."""
        size = self.ids.shape[self.axis]
        return (self.ids if size == self.ids.size else np.moveaxis(self.ids, self.axis, -1)).reshape(-1, size)


Labels = tuple[Label, ...]


@dataclass(frozen=True)
class Freeze:
    """Ids that may never be removed, and why."""

    ids: Ints
    reason: str


@dataclass(frozen=True)
class Read:
    """A contraction: `a` (values) and `b` (weights) are multiplied and summed over a channel dim.

    This is where a channel ends; a channel whose products are all zero there can go.
    `groups` > 1 for a grouped convolution, where one weight column serves a channel of every group.
    """

    op: int
    a: int
    a_label: Label
    b: int
    b_label: Label
    groups: int = 1


@dataclass(frozen=True)
class Pad:
    """Channels that a zero padding adds before and after others: a count held by a module's attributes."""

    module: str
    before: Ints
    after: Ints


@dataclass(frozen=True)
class Counted:
    """Channels of a group norm: an attribute of the module holds the number of groups."""

    module: str
    ids: Ints


@dataclass(frozen=True)
class Told:
    """Sizes that an op is told as numbers, which attributes of the module may hold: ``view(self.shape)``.

    Attributes:
        module: that told them.
        sizes: as they were told.
        ids: of the channels that make up a size, None where it is fixed.
        reason: why these channels stay whole where no attribute holds the sizes; empty where the trial cut decides.
        one_by_one: whether each size may have an attribute of its own, besides all of them having one together.
    """

    module: str
    sizes: tuple[int, ...]
    ids: tuple[Ints | None, ...]
    reason: str = ""
    one_by_one: bool = True


@dataclass(frozen=True)
class Split:
    """A view that makes several dims of one channel dim.

    Attributes:
        module: in which it does.
        ids: (heads, width) of an attention, say; (channels, places) where an image is made of a vector.
        dims: how many dims it makes.
    """

    module: str
    ids: Ints
    dims: int


@dataclass(frozen=True)
class Views:
    """How a view is read that makes several dims of one channel dim; without a word every head gets narrower.

    Attributes:
        heads: modules in which attention heads go as a whole, with the numbers of heads that a view there may split
            off (any, where none is given).
        images: modules in which a view makes an image of a vector: all places of a channel go together.
        numbered: modules whose attributes hold single sizes that a view or a split there is told.
    """

    heads: Mapping[str, frozenset[int]] = field(default_factory=dict)
    images: frozenset[str] = frozenset()
    numbered: frozenset[str] = frozenset()

    def splits_off_heads(self, module: str, count: int) -> bool:
        """Whether a view into `count` parts in this module makes heads that go as a whole."""
        numbers = self.heads.get(module)
        return numbers is not None and (not numbers or any(count % number == 0 for number in numbers))


@dataclass(frozen=True)
class Repeated:
    """A value whose positions along `dims` are all alike, however many there are.

    `sources` are values of the same shape that it was computed from; they are alike there as well.
    """

    dims: frozenset[int]
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Mixed:
    """An op that takes a statistic over channels: of those that stay, once some are cut. `label` is along its input."""

    op: int
    label: Label


@dataclass(frozen=True)
class Sum:
    """An op that sums over channels, of powers or differences too: a channel can end there, since zeros add nothing.

    `label` is along the argument at position `argument`.
    """

    op: int
    argument: int
    label: Label


@dataclass(frozen=True)
class Normed:
    """A weight with weight norm: ``g * v / |v|``, the norm over all dims but `dim`.

    `weight` is its value on the tape, `direction` and `magnitude` the parameters v and g.
    """

    weight: int
    direction: str
    magnitude: str
    dim: int


@dataclass
class Book:
    """What the rules find out while they walk the tape.

    `through_norms` lets channels go that a layer norm, a standardisation of weights or a mean runs over.
    """

    next_id: int = 1
    ties: list[tuple[Ints, ...]] = field(default_factory=list)  # pairs, of one shape
    freezes: list[Freeze] = field(default_factory=list)
    blocks: list[Ints] = field(default_factory=list)  # (rows, channels): equally many kept in each row
    filters: list[Ints] = field(default_factory=list)  # those of the blocks that are groups of a convolution
    aligned: list[Ints] = field(default_factory=list)  # (rows, channels): a kernel wants multiples of each row
    views: Views = field(default_factory=Views)
    through_norms: bool = False
    mixed: list[Mixed] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    normed: list[Normed] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    pads: list[Pad] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)  # ops without a rule, and how often
    repeated: dict[int, Repeated] = field(default_factory=dict)  # by value
    routes: dict[Hashable, list[Route]] = field(default_factory=dict)  # of layout ops; many are alike
    _frozen: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))  # by the first `_read` freezes
    _read: int = 0

    def tell(self, module: str, sizes: Sequence[int], ids: Sequence[Ints | None], reason: str = "") -> None:
        """An op in this module is told these sizes."""
        self.told.append(Told(module, tuple(sizes), tuple(ids), reason, bool(reason) or module in self.views.numbered))

    def fresh(self, count: int) -> Ints:
        """New ids, (count,)."""
        start, self.next_id = self.next_id, self.next_id + count
        return np.arange(start, self.next_id)

    def tie(self, first: Ints, second: Ints) -> None:
        """Position by position, these are the same channel (broadcasting)."""
        same = first.shape == second.shape
        self.ties.append((first, second) if same else np.broadcast_arrays(first, second))

    def freeze(self, labels: Labels, reason: str) -> None:
        """None of these channels may be removed."""
        self.freezes.extend(Freeze(label.ids.reshape(-1), reason) for label in labels)

    def is_frozen(self, label: Label) -> bool:
        """Whether these channels themselves were frozen up to now; those that are tied to them may not be known yet."""
        self._frozen = np.pad(self._frozen, (0, self.next_id - len(self._frozen)))
        for freeze in self.freezes[self._read :]:
            self._frozen[freeze.ids] = True
        self._read = len(self.freezes)
        return bool(self._frozen[label.ids].all())

    def equal_counts(self, rows: Ints) -> None:
        """Each row of ids must keep the same number of channels."""
        if rows.shape[0] > 1 and not (rows == rows[:1]).all():
            self.blocks.append(rows)

    def filter_groups(self, rows: Ints) -> None:
        """The filters of a grouped convolution, a row for each group: equal counts, and such as kernels like."""
        self.equal_counts(rows)
        self.filters.append(rows)

    def align(self, label: Label) -> Label:
        """Tie the rows position by position, so that the id depends on the axis alone."""
        if not label.index_dims:
            return label
        rows = label.rows()
        self.tie(rows[:1], rows)
        return along(rows[0], label.axis, label.ids.ndim)

    def merge(self, labels: list[Label], reason: str) -> Labels:
        """One label for each axis: labels of one axis are tied."""
        by_axis: dict[int, Label] = {}
        for label in labels:
            known = by_axis.setdefault(label.axis, label)
            if known is label:
                continue
            if known.ids.shape[label.axis] == label.ids.shape[label.axis]:
                self.tie(known.ids, label.ids)
            else:
                self.freeze((known, label), reason)
        return tuple(by_axis[axis] for axis in sorted(by_axis))


def along(ids: Ints, axis: int, ndim: int) -> Label:
    """The same ids wherever one is on the other dims."""
    return Label(ids.reshape((1,) * axis + (-1,) + (1,) * (ndim - axis - 1)), axis)


def first_along(ids: Ints, dim: int) -> Ints:
    """The ids at the first place of a dim, which stays."""
    return ids[(slice(None),) * dim + (slice(0, 1),)]


def compact(ids: Ints, axis: int) -> Label:
    """Drop the extent of every dim along which `ids` is constant, the axis excepted."""
    for dim in range(ids.ndim):
        if dim == axis or ids.shape[dim] == 1:
            continue
        first = first_along(ids, dim)
        if (ids == first).all():
            ids = first
    return Label(ids, axis)


@dataclass(frozen=True)
class Route:
    """Where a layout op takes the positions of a label.

    Attributes:
        positions: for each position of the op's result, the position in the label's ids that came there.
        axes: dims of the result along which the place on the label's axis changes.
    """

    positions: Ints
    axes: tuple[int, ...]


def route(label: Label, shape: tuple[int, ...], run: Callable[[Tensor], Tensor]) -> Route:
    """Run a layout op on the positions of a label; it depends on the label's shape and axis alone.

    Args:
        label: of the op's argument.
        shape: of that argument.
        run: the op.
    """
    count, extent = label.ids.size, label.ids.shape[label.axis]
    positions = torch.arange(count)
    result = run(positions.reshape(label.ids.shape).expand(shape))
    is_view = result.untyped_storage().data_ptr() == positions.untyped_storage().data_ptr()
    moved: Ints = result.numpy()
    for dim in range(moved.ndim):
        if moved.shape[dim] > 1 and not (moved.strides[dim] and (is_view or _varies(moved, dim))):
            moved = first_along(moved, dim)
    moved = moved.copy()  # what is kept holds no more than this
    axes = [dim for dim, size in enumerate(moved.shape) if size > 1 and moved.size]
    if count > extent:
        along = (moved // math.prod(label.ids.shape[label.axis + 1 :])) % extent
        axes = [dim for dim in axes if _varies(along, dim)]
    return Route(moved, tuple(axes))


def transport(label: Label, path: Route) -> tuple[Label, list[int]] | None:
    """Send a label through a layout op.

    Returns:
        The label, and the dims that hold its axis now: none where it has gone (a ``select`` of one channel), several
        where the op splits it. The label's axis is the last of them.
    """
    if not path.axes:
        return None
    ids = label.ids.reshape(-1)[path.positions]
    axes = [*path.axes]
    if len(axes) > 1:  # copies of a batch, or of a head, are one
        axes = [dim for dim in axes if _varies(ids, dim)] or axes
    return Label(ids, axes[-1]), axes


def _varies(values: Ints, dim: int) -> bool:
    return values.shape[dim] > 1 and values.size > 0 and not (values == first_along(values, dim)).all()
