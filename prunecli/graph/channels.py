"""Channel groups: what the tape's ties, seen as one graph, say must be removed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from prunecli.arrays import AnyInts, Bools, Ints
from prunecli.graph.blocks import held, refined
from prunecli.graph.labels import Book, Freeze, Label, Labels, Mixed, Normed, Pad, Read, Split, Sum, Told, Views, along
from prunecli.graph.rules import apply
from prunecli.graph.rules.call import NOT_A_CHANNEL, Call
from prunecli.graph.rules.layout import LAYOUT
from prunecli.graph.runs import runs_of
from prunecli.graph.tape import Example, Tape, record

Dims = tuple[int, ...]
Slots = dict[tuple[str, int], Ints]  # ids along a dim of a parameter
DEFAULT = Views()
_SEQUENCES = (tuple, list)


def _swapped(dims: Dims, first: int, second: int) -> Dims:
    order = list(dims)
    order[first], order[second] = order[second], order[first]
    return tuple(order)


# What becomes of the dims of a tensor.
TRANSPOSES: dict[str, Callable[..., Dims]] = {
    "aten.t": lambda dims: dims[::-1],
    "aten.transpose": _swapped,
    "aten.permute": lambda dims, order: tuple(dims[d] for d in order),
}


@dataclass(frozen=True)
class Slot:
    """One dim of one parameter or buffer, and the channel of each of its positions."""

    name: str
    dim: int
    channels: Ints


@dataclass(frozen=True)
class Group:
    """Channels that occur in exactly the same slots: the width of one place in the network."""

    name: str
    channels: Ints
    slots: tuple[int, ...]
    frozen: str


@dataclass(frozen=True)
class Channels:
    """The channels of a model: every id of every label belongs to one.

    Attributes:
        tape: the forward pass in eval mode that cost and constants are read from.
        labels: labels of each value on the tape.
        channel_of: (ids,) the channel of each id. Channel 0 is what stays for ever.
        frozen: (channels,) may not be removed.
        never_alone: (channels,) two stay wherever they stand in a row: a dim of length one is another thing to Python.
        reasons: why, for the channels where a reason is known.
        slots: every labelled parameter dim.
        slot_members: (slots, channels) 1 where a channel occurs in a slot.
        blocks: arrays (rows, n) of channels; each row must keep equally many.
        filters: those that are the groups of a convolution.
        aligned: arrays (rows, n) of channels; of each row a multiple stays, or all, since a kernel wants that.
        splits: views that make heads and their width of one channel dim.
        told: sizes that ops are told as numbers.
        mixed: ops whose statistics run over channels that may go.
        sums: ops that sum over channels.
        normed: weights with weight norm.
    """

    tape: Tape
    labels: dict[int, Labels]
    channel_of: Ints
    frozen: Bools
    never_alone: Bools
    reasons: dict[int, str]
    slots: tuple[Slot, ...]
    slot_members: csr_matrix
    groups: tuple[Group, ...]
    blocks: tuple[Ints, ...]
    filters: tuple[Ints, ...]
    aligned: tuple[Ints, ...]
    splits: tuple[Split, ...]
    mixed: tuple[Mixed, ...]
    sums: tuple[Sum, ...]
    reads: tuple[Read, ...]
    pads: tuple[Pad, ...]
    told: tuple[Told, ...]
    normed: tuple[Normed, ...]
    unknown: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of channels, channel 0 included."""
        return len(self.frozen)

    def of(self, ids: Ints) -> Ints:
        """Channels of some ids, in their shape."""
        found: Ints = self.channel_of[ids]
        return found

    @cached_property
    def _origins(self) -> dict[int, tuple[str, Dims]]:
        """Values that are parameters, transposed ones included: which, and the parameter's dim behind each dim."""
        found = {i: (name, tuple(range(len(self.tape.shapes[i])))) for name, i in self.tape.params.items()}
        for op in self.tape.ops:
            if op.name in TRANSPOSES and op.refs[0].index in found:
                name, dims = found[op.refs[0].index]
                found[op.outputs[0]] = name, TRANSPOSES[op.name](dims, *op.args[1:])
        return found

    def parameter_behind(self, index: int) -> str:
        """The name of the parameter that a value is, perhaps transposed; empty where it is none."""
        return self._origins.get(index, ("",))[0]

    def reader(self, read: Read) -> tuple[str, int]:
        """The parameter that reads and the dim along which it does; no name where two activations are multiplied."""
        name, dims = self._origins.get(read.b, ("", ()))
        return (name, dims[read.b_label.axis]) if name else ("", -1)

    @cached_property
    def _read_dims(self) -> dict[str, set[int]]:
        """The dims of each parameter that a sum of products runs over."""
        directions = {normed.weight: normed.direction for normed in self.normed}
        found: dict[str, set[int]] = {}
        for read in self.reads:
            name, dim = self.reader(read)
            if read.b in directions:
                name, dim = directions[read.b], read.b_label.axis
            found.setdefault(name, set()).add(dim)
        return found

    @cached_property
    def _live_dims(self) -> dict[str, list[int]]:
        """The dims of each parameter along which something may go."""
        found: dict[str, list[int]] = {}
        for slot in self.slots:
            if not self.frozen[slot.channels].all():
                found.setdefault(slot.name, []).append(slot.dim)
        return found

    def written_dims(self, name: str) -> list[int]:
        """The dims of a parameter whose positions are outputs: those that are not summed over, the first if all are.

        Where no sum over channels is known (the first layer, a filter for each channel), the first along which
        something may go; a magnitude of weight norm has none.
        """
        if any(name == normed.magnitude for normed in self.normed):
            return []
        read = self._read_dims.get(name, set())
        dims = range(len(self.tape.shapes[self.tape.params[name]])) if read else self._live_dims.get(name, [])[:1]
        return [dim for dim in dims if dim not in read] or [0]

    def member_names(self, group: Group) -> list[str]:
        """The slots of a group as ``parameter[dim]``."""
        return [f"{self.slots[s].name}[{self.slots[s].dim}]" for s in group.slots]

    def of_any_width(self) -> Channels:
        """The same channels, of which the groups of a convolution may keep any number."""
        return replace(self, filters=())

    def freeze(self, groups: dict[str, str]) -> Channels:
        """The same channels with more groups frozen: {group name: reason}."""
        frozen, reasons, regrouped = self.frozen.copy(), dict(self.reasons), []
        for group in self.groups:
            reason = group.frozen or groups.get(group.name, "")
            if reason and not group.frozen:
                frozen[group.channels] = True
                reasons.update(dict.fromkeys(group.channels.tolist(), reason))
            regrouped.append(replace(group, frozen=reason))
        return replace(self, frozen=frozen, reasons=reasons, groups=tuple(regrouped))


def written(group: Group, channels: Channels) -> dict[str, tuple[int, ...]]:
    """{module: shape of its weight} for the layers whose outputs are the group's channels."""
    found = {}
    for slot in (channels.slots[number] for number in group.slots):
        shape = channels.tape.shapes[channels.tape.params[slot.name]]
        if len(shape) > 1 and slot.dim in channels.written_dims(slot.name):
            found[slot.name.rpartition(".")[0]] = shape
    return found


def label_parameters(tape: Tape, book: Book) -> Slots:
    """A fresh id for each index of each dim longer than 1 of each parameter and buffer."""
    shapes = ((name, tape.shapes[index]) for name, index in tape.params.items())
    return {(name, dim): book.fresh(size) for name, shape in shapes for dim, size in enumerate(shape) if size > 1}


def walk(tape: Tape, slots: Slots, book: Book) -> dict[int, Labels]:
    """Apply the rule of every op that matters in order; freeze what reaches the model's outputs."""
    known: dict[int, Labels] = {}
    for (name, dim), ids in slots.items():
        index = tape.params[name]
        known[index] = (*known.get(index, ()), along(ids, dim, len(tape.shapes[index])))
    for op in tape.needed:
        if op.name in LAYOUT and all(0 in tape.shapes[index] for index in op.outputs):
            continue  # an empty slice holds nobody's channels
        outputs = apply(Call(op, tape, known), book)
        for index, labels in zip(op.outputs, outputs, strict=True):
            known[index] = tuple(label for label in labels if label.ids.shape[label.axis] > 1)
    for index in tape.outputs:
        book.freeze(known.get(index, ()), "model output")
    return known


def trace(
    module: nn.Module,
    example: Example,
    views: Views = DEFAULT,
    *,
    through_norms: bool = False,
) -> Channels:
    """Find the channels of a model. The model is not changed and not run on its own device.

    With `through_norms`, channels may go that a layer norm or a mean runs over.
    `views` says how views are read that make several dims of one channel dim.

    Where the forward pass in eval mode leaves parameters unused (auxiliary heads), a pass in training mode
    adds its ties, so that the cut model can still be trained.
    """
    tape = record(module, example)
    book = Book(views=views, through_norms=through_norms)
    slots = label_parameters(tape, book)
    labels = walk(tape, slots, book)
    used = tape.used_params()
    if any(name not in used for name, _ in slots):
        used |= _train_pass(module, example, slots, book)
    channel_of = components(book.next_id, book.ties)
    _drop_fixed_sizes(book, channel_of)
    _freeze_literals(module, book)
    _share_numbers(module, book)
    for (name, _), ids in slots.items():
        if name not in used:
            book.freeze((Label(ids, 0),), "not used in the forward pass")
    return connect(tape, slots, labels, book, channel_of)


def holders(owner: nn.Module, told: Told) -> list[tuple[str, str, int | slice]]:
    """The attributes that may hold told sizes: path of the module, name, and which size or sizes in a row.

    A size by itself may be held by the modules inside as well, torch's own excepted, which know of none.

    Args:
        owner: the module that told them.
        told: the sizes.
    """
    held = [(name, tuple(value)) for name, value in vars(owner).items() if isinstance(value, _SEQUENCES)]
    rows: list[tuple[str, str, int | slice]] = [
        (told.module, name, run)
        for name, part in held
        if all(type(n) is int for n in part)
        for run in _runs(told, part)[-1:]
    ]
    if not told.one_by_one:
        return rows
    places = {size: place for place, size in enumerate(told.sizes) if size > 1 and told.ids[place] is not None}
    parts = ((p, m) for p, m in owner.named_modules(prefix=told.module) if not type(m).__module__.startswith("torch."))
    numbers = ((p, name, value) for p, m in parts for name, value in vars(m).items() if type(value) is int)
    return [*rows, *((path, name, places[value]) for path, name, value in numbers if value in places)]


def _runs(told: Told, part: tuple[int, ...]) -> list[slice]:
    """Where told sizes, one of channels among them, are these in a row; one size alone says too little."""
    if len(part) < min(2, len(told.sizes)):
        return []
    runs = (slice(start, start + len(part)) for start in range(len(told.sizes) - len(part) + 1))
    return [run for run in runs if told.sizes[run] == part and any(ids is not None for ids in told.ids[run])]


def _drop_fixed_sizes(book: Book, channel_of: Ints) -> None:
    """Of equal sizes that an op is told, an attribute holds that of channels which may go: 64 of them on 64 x 64."""

    def is_unclear(told: Told) -> bool:
        sizes = [size for size, ids in zip(told.sizes, told.ids, strict=True) if ids is not None]
        return len(set(sizes)) < len(sizes)

    if not any(map(is_unclear, book.told)):
        return
    frozen = _first_freezes(book, channel_of) < len(book.freezes)
    for number, told in enumerate(book.told):
        ids = (None if own is None or frozen[channel_of[own]].all() else own for own in told.ids)
        book.told[number] = replace(told, ids=tuple(ids)) if is_unclear(told) else told


def _freeze_literals(module: nn.Module, book: Book) -> None:
    """What an op is told as a number can change only where an attribute of the module holds that number."""
    for told in book.told:
        if told.reason and not holders(module.get_submodule(told.module), told):
            book.freezes += [Freeze(ids, told.reason) for ids in told.ids if ids is not None]
    for counted in book.counted:
        owner = module.get_submodule(counted.module)
        if not isinstance(owner, nn.GroupNorm) or owner.weight is None:
            reason = f"a fixed number of groups is normalised in {counted.module or 'the model'}"
            book.freezes.append(Freeze(counted.ids, reason))
    for pad in book.pads:
        if not hasattr(module.get_submodule(pad.module), "channel_pads"):
            for ids in (pad.before, pad.after):
                book.freezes.append(Freeze(ids, f"a fixed number of channels is padded in {pad.module or 'the model'}"))


def _share_numbers(module: nn.Module, book: Book) -> None:
    """Sizes that one attribute holds stay equal."""
    held: dict[tuple[str, str], list[Ints]] = {}
    for told in (told for told in book.told if told.one_by_one):
        for path, name, place in holders(module.get_submodule(told.module), told):
            ids = None if isinstance(place, slice) else told.ids[place]
            if ids is not None:
                held.setdefault((path, name), []).append(ids.reshape(1, -1))
    for rows in held.values():
        book.equal_counts(np.concatenate(rows))


def _train_pass(module: nn.Module, example: Example, slots: Slots, book: Book) -> set[str]:
    """Ties and freezes of the forward pass in training mode; a model that cannot train on this input adds none."""
    pair = example.map(lambda t: torch.cat([t, t]) if t.ndim else t)  # batch norm wants two values
    try:
        tape = record(module, pair, train=True)
    except Exception:
        return set()
    extra = replace(book, reads=[], mixed=[], sums=[], normed=[], pads=[], counted=[], told=[], repeated={})
    walk(tape, slots, extra)
    _freeze_literals(module, extra)
    book.next_id = extra.next_id
    return tape.used_params()


def connect(
    tape: Tape,
    slots: Slots,
    labels: dict[int, Labels],
    book: Book,
    channel_of: Ints,
) -> Channels:
    """What the book says of the channels: of each id, in `channel_of`, the component of all ties that it is in."""
    first = _first_freezes(book, channel_of)
    frozen = first < len(book.freezes)
    texts = np.array([freeze.reason for freeze in book.freezes], dtype=object)
    reasons = dict(zip(np.flatnonzero(frozen).tolist(), texts[first[frozen]].tolist(), strict=True))
    no_channels = np.array([*(text.startswith(NOT_A_CHANNEL) for text in texts), False])[first]
    frozen[0] = True
    placed = tuple(Slot(name, dim, channel_of[ids]) for (name, dim), ids in slots.items())
    equal, filters, aligned = (
        {rows.tobytes(): rows for rows in (channel_of[block] for block in found) if not frozen[rows].all()}
        for found in (book.blocks, book.filters, book.aligned)
    )
    blocks = refined([*equal.values()])
    for channel, frozen_one in held(blocks, frozen).items():
        frozen[channel] = True
        reasons[channel] = f"as many must stay as are frozen elsewhere: {reasons.get(frozen_one, 'they are fixed')}"
    members = _occurrences(placed, len(frozen))
    return Channels(
        tape, labels, channel_of, frozen, np.zeros_like(frozen), reasons,
        placed, members, _group(placed, members, no_channels, frozen, reasons),
        tuple(blocks), tuple(filters.values()), tuple(aligned.values()), tuple(book.splits),
        tuple(book.mixed), tuple(book.sums), tuple(book.reads), tuple(book.pads), tuple(book.told), tuple(book.normed),
        dict(book.unknown),
    )  # fmt: skip


def _first_freezes(book: Book, channel_of: Ints) -> Ints:
    """(channels,) the number of the first freeze of each channel; that of freezes in all where it has none."""
    first = np.full(int(channel_of.max()) + 1, len(book.freezes))
    for number, freeze in reversed([*enumerate(book.freezes)]):
        first[channel_of[freeze.ids]] = number
    return first


def components(count: int, ties: Sequence[tuple[Ints, ...]]) -> Ints:
    """The component of each id in [0, count), tied by pairs of arrays of one shape; numbered by their first ids.

    Most ties are of dims as a whole: ids that always come in a row are one node of the graph.
    """
    ties = [tie for tie in ties if tie[0].size]
    if not ties:
        return np.arange(count)
    runs = runs_of(count, ties)
    nodes = len(runs.starts)
    graph = coo_matrix((np.ones(len(runs.first)), (runs.first, runs.second)), shape=(nodes, nodes))
    _, labels = connected_components(graph, directed=False)
    return runs.spread(np.asarray(labels, dtype=np.int64))


def _occurrences(slots: tuple[Slot, ...], count: int) -> csr_matrix:
    """(slots, channels) 1 where a channel occurs in a slot, however often."""
    rows: list[AnyInts] = [np.zeros(0, dtype=np.int32), *(slot.channels for slot in slots)]
    columns = np.concatenate(rows, dtype=np.int32, casting="same_kind")  # of the width that scipy would make of them
    starts = np.cumsum([0, *(len(slot.channels) for slot in slots)], dtype=np.int32)
    members = csr_matrix((np.ones(len(columns), dtype=np.int64), columns, starts), shape=(len(slots), count))
    members.sum_duplicates()
    members.data[:] = 1
    return members


def _group(
    slots: tuple[Slot, ...], slot_members: csr_matrix, no_channels: Bools, frozen: Bools, reasons: dict[int, str]
) -> tuple[Group, ...]:
    """Collect channels that occur in the same slots, in order of those slots."""
    by_channel = slot_members.T.tocsr()
    by_channel.sort_indices()
    places = np.diff(by_channel.indptr)
    hidden = no_channels & (places == 1)  # a kernel's dim; one that is shared is somebody's channels after all
    members = np.flatnonzero((places > 0) & ~hidden)
    # a random number for each slot: their sum (mod 2^63) stands for the set of slots
    numbers = np.random.default_rng(0).integers(0, 2**63, len(slots), dtype=np.int64)
    keys = (by_channel @ numbers)[members] * 2 + frozen[members]
    order = np.argsort(keys, kind="stable")
    together = np.split(members[order], np.flatnonzero(np.diff(keys[order])) + 1) if len(members) else []
    starts = by_channel.indptr
    placed = [(tuple(by_channel.indices[starts[c[0]] : starts[c[0] + 1]].tolist()), c) for c in together]
    names: dict[str, int] = {}
    return tuple(
        _named(places, c, slots, frozen, reasons, names)
        for places, c in sorted(placed, key=lambda p: (p[0], bool(frozen[p[1][0]]), p[1][0]))
    )


def _named(
    members: tuple[int, ...],
    channels: Ints,
    slots: tuple[Slot, ...],
    frozen: Bools,
    reasons: dict[int, str],
    names: dict[str, int],
) -> Group:
    first = min(members, key=lambda s: (slots[s].dim, s))
    base = slots[first].name.rpartition(".")[0] or slots[first].name
    names[base] = names.get(base, 0) + 1
    name = base if names[base] == 1 else f"{base}#{names[base]}"
    reason = ""
    if frozen[channels[0]]:
        reason = next((reasons[c] for c in channels.tolist() if c in reasons), "coupled to a frozen channel")
    return Group(name, channels, members, reason)
