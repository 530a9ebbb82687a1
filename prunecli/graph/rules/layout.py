"""Views and copies that only move positions: the op itself is run on the ids."""

from __future__ import annotations

import math

import numpy as np
import torch

from prunecli.graph.labels import Book, Label, Labels, Route, Split, along, compact, first_along, route, transport
from prunecli.graph.rules.call import NOT_A_CHANNEL, RULES, Call, dims_of, rule, unknown
from prunecli.graph.tape import Ref

# The op itself is run on the ids.
LAYOUT = {
    "aten." + name
    for name in (
        "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "select",
        "slice", "split", "unsafe_split", "split_with_sizes", "unbind", "flip", "roll", "repeat",
        "transpose_", "t_", "squeeze_", "unsqueeze_", "pixel_shuffle", "pixel_unshuffle", "unfold", "channel_shuffle",
        "diagonal",
    )
}  # fmt: skip
VIEWS = {"aten.view", "aten._unsafe_view", "aten.reshape"}
SPLITS = {"aten.split", "aten.unsafe_split"}
RESHAPES = {*VIEWS, "aten.pixel_shuffle", "aten.pixel_unshuffle"}


def layout(call: Call, book: Book) -> list[Labels]:
    """Views and copies that only move positions: the op is run on the positions."""
    source = call.ref(0)
    if source is None:
        return unknown(call, book)
    results: list[list[Label]] = [[] for _ in call.op.outputs]
    for label in call.labels(0):
        # where the axis is not innermost, only equal rows keep their order
        torn = call.op.name in RESHAPES and any(d > label.axis for d in label.index_dims)
        _transport(call, book, book.align(label) if torn else label, results)
    outputs = [_one_per_axis(call, book, labels) for labels in results]
    if call.op.name in VIEWS:
        by_axis = {label.axis: label.rows()[0] for label in outputs[0]}
        sizes = call.op.args[1]
        book.tell(call.op.module, sizes, [by_axis.get(dim) for dim in range(len(sizes))])
    return outputs


def _transport(call: Call, book: Book, label: Label, results: list[list[Label]]) -> None:
    source = call.ref(0)
    assert source is not None
    found = [transport(label, path) for path in _routes(call, book, label, source)]
    moved = [None if m is None else _split(call, book, *m) for m in found]
    picked = {n for n, m in zip(call.op.outputs, moved, strict=True) if m is None and 0 not in call.tape.shapes[n]}
    if picked and not picked.isdisjoint(call.tape.seen):
        return book.freeze((label,), f"one position is picked at {call.op.where}")
    size = label.ids.shape[label.axis]
    if call.op.name not in RESHAPES and any(m and m.ids.shape[m.axis] < size and not m.index_dims for m in moved):
        _cut_up(call, book, label, moved)
    for result, part in zip(results, moved, strict=True):
        if part is None:
            continue
        if part.index_dims:
            book.equal_counts(part.rows())
        if call.op.name == "aten.roll" and part.axis in dims_of(call.op.args[2], part.ids.ndim):
            book.freeze((part,), f"channels are rolled at {call.op.where}")
        result.append(part)
    return None


def _routes(call: Call, book: Book, label: Label, source: Ref) -> list[Route]:
    """Where each output of a layout op takes a label; found once for all calls that are alike."""
    settings = repr((call.op.args[1:], call.op.kwargs))
    key = (call.op.func, settings, call.shape(source), label.ids.shape, label.axis)
    if key not in book.routes:
        book.routes[key] = [
            route(label, call.shape(source), lambda p, i=i: call.run({source.index: p})[i])  # type: ignore[misc]
            for i in range(len(call.op.outputs))
        ]
    return book.routes[key]


def _split(call: Call, book: Book, label: Label, axes: list[int]) -> Label:
    """Where a view splits the axis into heads and their width, one of the two is what gets shorter.

    Of an image it is the channels, which lie outermost.
    """
    if len(axes) < 2 or call.op.name not in RESHAPES:
        return compact(label.ids, label.axis)
    if call.op.name == "aten.pixel_shuffle":
        return _as_a_whole(book, label, axes[0], axes[1:])
    image = call.op.module in book.views.images
    heads, *width = axes if image else axes[-2:]
    ids = np.moveaxis(label.ids, (heads, *width), range(-1 - len(width), 0))
    rows = ids[(0,) * (ids.ndim - 1 - len(width))]
    split = Split(call.op.module, rows.reshape(len(rows), -1), len(axes))
    whole = image or book.views.splits_off_heads(call.op.module, len(split.ids))
    if not whole:
        for other in book.splits:  # queries, keys and values: a module knows one width
            if other.module == split.module and other.ids.shape[1] == split.ids.shape[1]:
                book.equal_counts(np.concatenate([other.ids, split.ids]))
                break
    book.splits.append(split)
    return _as_a_whole(book, label, heads, width) if whole else compact(label.ids, axes[-1])


def _as_a_whole(book: Book, label: Label, axis: int, within: list[int]) -> Label:
    """What lies at one place of an axis stays or goes together."""
    first = label.ids
    for dim in within:
        first = first_along(first, dim)
    book.tie(first, label.ids)
    return compact(first, axis)


def _cut_up(call: Call, book: Book, label: Label, parts: list[Label | None]) -> None:
    """The axis is cut into parts: equal parts must keep equal counts (chunk), others stay as they are."""
    size, sizes = label.ids.shape[label.axis], {part.ids.shape[part.axis] if part else 0 for part in parts}
    start = call.op.args[2] if call.op.name == "aten.slice" and len(call.op.args) > 2 else 0
    part = max(sizes)
    equal = len(sizes) == 1 and size % part == 0 and (start or 0) % part == 0
    reason = f"cut at a fixed position at {call.op.where}"
    if label.index_dims:
        return book.freeze((label,), reason)
    if equal:
        book.equal_counts(label.ids.reshape(-1, part))
    ids = [None if part is None else part.ids.reshape(-1) for part in parts]
    if call.op.name == "aten.split_with_sizes":
        book.tell(call.op.module, call.op.args[1], ids, "" if equal else reason)
    elif call.op.name in SPLITS and equal:
        book.tell(call.op.module, [part], ids[:1])
    elif call.op.name == "aten.slice" and (bounds := _bounds(call, size)):
        row = label.ids.reshape(-1)
        for n in bounds:
            book.tell(call.op.module, [abs(n)], [row[:n] if n > 0 else row[n:]], "" if equal else reason)
    elif not equal:
        book.freeze((label,), reason)
    return None


def _bounds(call: Call, size: int) -> list[int]:
    """Where a slice begins and ends inside a dim of that size, as the code says it; none where it skips positions."""
    bounds = (call.named(name, None) for name in ("start", "end"))
    return [n for n in bounds if n is not None and 0 < abs(n) < size] if call.named("step", 1) == 1 else []


def _one_per_axis(call: Call, book: Book, labels: list[Label]) -> Labels:
    """Where dims become one, the longest one that may lose channels keeps them; the others stay as they are."""
    by_axis: dict[int, list[Label]] = {}
    for label in labels:
        by_axis.setdefault(label.axis, []).append(label)
    for found in by_axis.values():
        if len(found) > 1:
            found.sort(key=lambda label: (book.is_frozen(label), -len(np.unique(label.ids))))
            book.freeze(tuple(found[1:]), f"two channel dims become one at {call.op.where}")
    return tuple(found[0] for found in by_axis.values())


@rule("aten::index")
def index(call: Call, book: Book) -> list[Labels]:
    """Indexing of dims: channels of the other dims pass (any index does, they are the same there)."""
    source = call.ref(0)
    if source is None:
        return unknown(call, book)
    indices = call.op.args[1]
    indexed = {d for d, i in enumerate(indices) if isinstance(i, Ref)}
    for places in (i for i in indices if isinstance(i, Ref)):
        book.freeze(call.known.get(places.index, ()), f"says where to look at {call.op.where}")
    shapes = [call.shape(i) if isinstance(i, Ref) else None for i in indices]
    results: list[Label] = []
    for label in call.labels(0):
        if label.axis in indexed or any(d in indexed for d in label.index_dims):
            book.freeze((label,), f"indexed at {call.op.where}")
            continue
        # of an expert that no token goes to, as of one that gets one
        zeros = [None if s is None else torch.zeros([max(n, 1) for n in s], dtype=torch.int64) for s in shapes]
        path = route(label, call.shape(source), lambda p, z=zeros: torch.ops.aten.index(p, z))  # type: ignore[misc]
        moved = transport(label, path)
        if moved is None or len(call.out_shapes[0]) != moved[0].ids.ndim:
            book.freeze((label,), f"indexed at {call.op.where}")
        else:
            results.append(compact(moved[0].ids, moved[0].axis))
    return [tuple(results)]


@rule("aten::channel_shuffle")
def channel_shuffle(call: Call, book: Book) -> list[Labels]:
    """The channels of all groups take turns, so that those of one turn stay or go together."""
    groups = int(call.op.args[1])
    for label in call.labels(0):
        if label.axis == 1:
            rows = label.rows()
            turns = rows.reshape(len(rows), groups, -1)
            book.tie(turns[:, :1], turns)
    return layout(call, book)


@rule("aten::index_select")
def index_select(call: Call, book: Book) -> list[Labels]:
    """Channels along other dims pass."""
    dim = int(call.op.args[1]) % len(call.out_shapes[0])
    picked = tuple(label for label in call.labels(0) if dim in (label.axis, *label.index_dims))
    book.freeze(picked, f"indexed at {call.op.where}")
    return [tuple(label for label in call.labels(0) if dim not in (label.axis, *label.index_dims))]


@rule("aten::view_as_real")
def view_as_real(call: Call, book: Book) -> list[Labels]:
    """A last dim for the two parts of a complex number."""
    del book
    return [tuple(Label(label.ids[..., None], label.axis) for label in call.labels(0))]


@rule("aten::view_as_complex")
def view_as_complex(call: Call, book: Book) -> list[Labels]:
    """The last dim is the two parts of a complex number."""
    last = len(call.out_shapes[0])
    book.freeze(tuple(label for label in call.labels(0) if label.axis == last), NOT_A_CHANNEL)
    kept = (book.align(label) if last in label.index_dims else label for label in call.labels(0) if label.axis != last)
    return [tuple(Label(label.ids[..., 0], label.axis) for label in kept)]


@rule("aten::im2col")
def im2col(call: Call, book: Book) -> list[Labels]:
    """(N, C, *) -> (N, C * places of the kernel, L): the places of one channel lie side by side."""
    if len(call.out_shapes[0]) != 3:
        return unknown(call, book)
    own, places = _image_channels(call, book), math.prod(call.op.args[1])
    return [tuple(along(np.repeat(label.ids, places), 1, 3) for label in own)]


@rule("aten::col2im")
def col2im(call: Call, book: Book) -> list[Labels]:
    """(N, C * places of the kernel, L) -> (N, C, *): the places of one channel are summed up."""
    if len(call.out_shapes[0]) != 4:
        return unknown(call, book)
    own, places = _image_channels(call, book), math.prod(call.op.args[2])
    rows = [label.ids.reshape(-1, places) for label in own]
    for row in rows:
        book.tie(row[:, :1], row)
    return [tuple(along(row[:, 0], 1, 4) for row in rows)]


def _image_channels(call: Call, book: Book) -> Labels:
    """The label of dim 1 of a batch; those of places are frozen."""
    book.freeze(tuple(label for label in call.labels(0) if label.axis != 1), NOT_A_CHANNEL)
    return tuple(book.align(label) for label in call.labels(0) if label.axis == 1)


@rule("aten::as_strided_")
def as_strided(call: Call, book: Book) -> list[Labels]:
    """Pooling to one pixel in channels-last order: nothing moves. Any other use is not followed."""
    source = call.ref(0)
    shape, (size, stride) = call.out_shapes[0], call.op.args[1:3]
    pixels = len(shape) > 2 and shape[2:] == (1,) * (len(shape) - 2)
    if source is None or not pixels or call.shape(source) != shape == tuple(size) or list(stride[:2]) != [shape[1], 1]:
        return unknown(call, book)
    return [call.labels(0)]


RULES |= dict.fromkeys(LAYOUT - RULES.keys(), layout)
