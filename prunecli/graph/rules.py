"""What each ATen op does to channels.

Three tables say almost everything: `PATTERNS` in a notation, `LAYOUT` (the op is run on the ids themselves)
and the ops that torch tags as pointwise. `RULES` holds a function for what a pattern cannot say.
An op in no table freezes what it touches; nothing is guessed.

Add an op to your own build with::

    @prunecli.rule("mylib::op")
    def my_op(call, book):
        return [call.labels(0)]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from prunecli.graph.labels import Book, Label, Labels, Mixed, Pad, Read, Route, Split, along, compact, route, transport
from prunecli.graph.tape import Op, Ref, Tape, flatten

NOT_A_CHANNEL = "not a channel dim"  # kernel and position dims

Rule = Callable[["Call", Book], list[Labels]]
Letters = tuple[str, ...]  # one for each dim
RULES: dict[str, Rule] = {}

# Letters are dims, `*` any further dims. A letter in two operands ties them; one that is missing
# in the result is summed over (a read); dims under `*` are never pruned.
PATTERNS: dict[str, tuple[tuple[int, ...], str]] = {
    "aten.addmm": ((0, 1, 2), "m, n k, k m -> n m"),
    "aten.mm": ((0, 1), "n k, k m -> n m"),
    "aten.bmm": ((0, 1), "b n k, b k m -> b n m"),
    "aten.baddbmm": ((0, 1, 2), "b n m, b n k, b k m -> b n m"),
    "aten.mv": ((0, 1), "n k, k -> n"),
    "aten.linear": ((0, 1, 2), "* k, m k, m -> * m"),
    "aten.native_batch_norm": ((0, 1, 2, 3, 4), "n c *, c, c, c, c -> n c *"),
    "aten._native_batch_norm_legit": ((0, 1, 2, 3, 4), "n c *, c, c, c, c -> n c *"),
    "aten._native_batch_norm_legit_no_training": ((0, 1, 2, 3, 4), "n c *, c, c, c, c -> n c *"),
    "aten._prelu_kernel": ((0, 1), "n c *, 1 c * -> n c *"),
    "aten.embedding": ((0,), "v e -> * e"),
}
PATTERNS |= {
    "aten." + name: ((0,), "n c * -> n c *")
    for name in (
        "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d",
        "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
        "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d",
        "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d", "upsample_linear1d",
        "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
        "replication_pad2d", "replication_pad3d",
    )
}  # fmt: skip

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
RESHAPES = {"aten.view", "aten._unsafe_view", "aten.reshape", "aten.pixel_shuffle", "aten.pixel_unshuffle"}

# Elementwise in what they do to channels, though torch does not tag them so.
ELEMENTWISE = {
    "aten." + name
    for name in (
        "alias", "detach", "clone", "contiguous", "lift_fresh", "fill_", "zero_", "copy_", "_to_copy", "zeros_like",
        "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "bernoulli_", "native_dropout",
        "rrelu_with_noise", "hardswish", "hardswish_", "log_sigmoid_forward",
    )
}  # fmt: skip

# Each output depends on all channels along the given dims: channels pass, but removing one changes the rest.
MIXING = {"aten._softmax", "aten._safe_softmax", "aten._log_softmax", "aten.native_layer_norm",
          "aten.native_group_norm", "aten.cumsum"}  # fmt: skip

REDUCTIONS = {
    "aten." + name
    for name in ("mean", "sum", "amax", "amin", "var", "std", "max", "min", "logsumexp", "linalg_vector_norm", "norm",
                 "argmax", "argmin", "prod", "any", "all", "var_mean", "std_mean")
}  # fmt: skip

# Zero everywhere.
ZEROS = {"aten.zeros", "aten.new_zeros"}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register what an op does to channels: ``rule("namespace::op")``.

    The function gets a `Call` and the `Book`, and returns one tuple of labels for each output tensor.

    Raises:
        ValueError: the op has a rule already.
    """
    key = name.replace("::", ".")

    def register(function: Rule) -> Rule:
        if key in RULES:
            raise ValueError(f"{name} has a rule already: {RULES[key].__module__}.{RULES[key].__qualname__}")
        RULES[key] = function
        return function

    return register


@dataclass(frozen=True)
class Call:
    """One op together with the labels of its arguments."""

    op: Op
    tape: Tape
    known: dict[int, Labels]

    def ref(self, position: int) -> Ref | None:
        """The tensor argument at `position`, or None."""
        value = self.op.args[position] if position < len(self.op.args) else None
        return value if isinstance(value, Ref) else None

    def labels(self, position: int) -> Labels:
        """Labels of the argument at `position`; empty where it is no tensor."""
        ref = self.ref(position)
        return self.known.get(ref.index, ()) if ref else ()

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a tensor argument."""
        return self.tape.shapes[ref.index]

    def run(self, positions: dict[int, Tensor]) -> list[Tensor]:
        """The op itself on other tensors; arguments by value index."""
        args = [positions.get(a.index, a) if isinstance(a, Ref) else a for a in self.op.args]
        if self.op.name in ("aten.view", "aten._unsafe_view"):
            source, shape = args[0], self.op.args[1]
            assert isinstance(source, Tensor)
            return [source.reshape(shape)]  # a view of strided positions may need a copy
        return [t for t in flatten(self.op.func(*args, **self.op.kwargs)) if isinstance(t, Tensor)]

    @property
    def out_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the output tensors."""
        return [self.tape.shapes[i] for i in self.op.outputs]


def apply(call: Call, book: Book) -> list[Labels]:
    """Labels of the outputs of `call`; ties, reads and freezes go into `book`."""
    name = call.op.name
    if name in RULES:
        return RULES[name](call, book)
    if name in PATTERNS:
        return pattern(call, book, *PATTERNS[name])
    if name in LAYOUT:
        return layout(call, book)
    if name in MIXING:
        return mixing(call, book)
    if name in ZEROS:
        return zeros(call, book)
    if name in REDUCTIONS:
        return reduction(call, book)
    if name in ELEMENTWISE or torch.Tag.pointwise in call.op.func.tags:
        return pointwise(call, book)
    return unknown(call, book)


def unknown(call: Call, book: Book) -> list[Labels]:
    """No rule: every channel that comes near stays."""
    refs = call.op.refs
    if any(call.known.get(ref.index) for ref in refs):
        book.unknown[call.op.name] = book.unknown.get(call.op.name, 0) + 1
    for ref in refs:
        book.freeze(call.known.get(ref.index, ()), f"no rule for {call.op.where}")
    return [() for _ in call.op.outputs]


def pointwise(call: Call, book: Book) -> list[Labels]:
    """Broadcasting: labels of one dim are tied; a dim that an unlabelled operand fills is frozen."""
    if not call.op.outputs:
        return []
    ndim = len(call.out_shapes[0])
    refs = call.op.refs
    lifted = []
    for ref in refs:
        for label in call.known.get(ref.index, ()):
            lifted.append(label.lifted(ndim))
    for label in lifted:
        for ref in refs:
            if not _fits(call, ref, label, ndim):
                book.freeze((label,), f"meets a tensor of fixed size at {call.op.where}")
    merged = book.merge(lifted, f"two widths meet at {call.op.where}")
    return [merged if len(shape) == ndim else () for shape in call.out_shapes]


def _fits(call: Call, ref: Ref, label: Label, ndim: int) -> bool:
    shape = call.shape(ref)
    axis = label.axis - (ndim - len(shape))
    if axis < 0 or shape[axis] == 1:
        return True
    return any(own.axis == axis for own in call.known.get(ref.index, ()))


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
    return [_one_per_axis(call, book, labels) for labels in results]


def _transport(call: Call, book: Book, label: Label, results: list[list[Label]]) -> None:
    source = call.ref(0)
    assert source is not None
    found = [transport(label, path) for path in _routes(call, book, label, source)]
    moved = [None if m is None else _split(call, book, *m) for m in found]
    kept = [m for m in moved if m is not None]
    if len(kept) < len(moved):
        return book.freeze((label,), f"one position is picked at {call.op.where}")
    size = label.ids.shape[label.axis]
    if call.op.name not in RESHAPES and any(m.ids.shape[m.axis] < size and not m.index_dims for m in kept):
        _cut_up(call, book, label, kept)
    for result, part in zip(results, kept, strict=True):
        if part.index_dims:
            book.equal_counts(part.rows())
        if call.op.name == "aten.roll" and part.axis in _dims(call.op.args[2], part.ids.ndim):
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
    """Where a view splits the axis into heads and their width, one of the two is what gets shorter."""
    if len(axes) < 2 or call.op.name not in RESHAPES:
        return compact(label.ids, label.axis)
    heads, width = axes[-2:]
    ids = label.ids.movedim((heads, width), (-2, -1))
    split = Split(call.op.module, ids.reshape(-1, *ids.shape[-2:])[0])
    whole = book.splits_off_heads(call.op.module, len(split.ids))
    if not whole:
        for other in book.splits:  # queries, keys and values: a module knows one width
            if other.module == split.module and other.ids.shape[1] == split.ids.shape[1]:
                book.equal_counts(torch.cat([other.ids, split.ids]))
                break
    book.splits.append(split)
    if not whole:
        return compact(label.ids, width)
    first = label.ids.narrow(width, 0, 1)
    book.tie(first, label.ids)
    return compact(first, heads)


def _cut_up(call: Call, book: Book, label: Label, parts: list[Label]) -> None:
    """The axis is cut into parts: equal parts must keep equal counts (chunk), others stay as they are."""
    size, part = label.ids.shape[label.axis], parts[0].ids.shape[parts[0].axis]
    start = call.op.args[2] if call.op.name == "aten.slice" and len(call.op.args) > 2 else 0
    equal = all(p.ids.shape[p.axis] == part for p in parts) and size % part == 0 and (start or 0) % part == 0
    if not equal or label.index_dims:
        return book.freeze((label,), f"cut at a fixed position at {call.op.where}")
    return book.equal_counts(label.ids.reshape(-1, part))


def zeros(call: Call, book: Book) -> list[Labels]:
    """Whatever channels they meet, their positions may belong to them, as in the first state of a recurrent layer.

    That its size follows is for the trial cut to find out.
    """
    ((*shape,),) = call.out_shapes
    return [tuple(along(book.fresh(size), dim, len(shape)) for dim, size in enumerate(shape) if size > 1)]


def _one_per_axis(call: Call, book: Book, labels: list[Label]) -> Labels:
    if len({label.axis for label in labels}) < len(labels):
        book.freeze(tuple(labels), f"two channel dims become one at {call.op.where}")
        return ()
    return tuple(labels)


def _dims(dims: Any, ndim: int) -> set[int]:
    listed = dims if isinstance(dims, list | tuple) else [dims]
    return {int(d) % max(ndim, 1) for d in listed}


def mixing(call: Call, book: Book) -> list[Labels]:
    """Normalisation or softmax over channels: they pass, tied to the affine parameters, and stay whole."""
    shape = call.out_shapes[0]
    first = call.op.args[1] if len(call.op.args) > 1 else None
    if call.op.name == "aten.native_layer_norm":
        mixed = set(range(len(shape) - len(call.op.args[1]), len(shape)))
    elif call.op.name == "aten.native_group_norm":
        mixed = {1}
    else:
        mixed = _dims(first, len(shape))
    labels = call.labels(0)
    if book.through_norms and call.op.name == "aten.native_layer_norm" and len(call.op.args[1]) == 1:
        return [_through_norm(call, book, labels), *(() for _ in call.op.outputs[1:])]
    for label in labels:
        if label.axis in mixed:
            book.freeze((label,), f"every channel influences the others at {call.op.where}")
    for position in range(1, len(call.op.args)):
        book.freeze(call.labels(position), f"belongs to the normalisation {call.op.where}")
    return [labels, *(() for _ in call.op.outputs[1:])]


def _through_norm(call: Call, book: Book, labels: Labels) -> Labels:
    """A layer norm over the last dim: scale and shift follow the channels, statistics are of those that stay."""
    last = len(call.out_shapes[0]) - 1
    affine = [label.lifted(last + 1) for position in (2, 3) for label in call.labels(position)]
    along = [book.align(label) for label in labels if label.axis == last]
    if not along:
        book.freeze(tuple(affine), f"belongs to the normalisation {call.op.where}")
        return labels
    book.mixed.append(Mixed(call.op.index, along[0]))
    merged = book.merge([*along, *affine], f"two widths meet at {call.op.where}")
    return (*(label for label in labels if label.axis != last), *merged)


def reduction(call: Call, book: Book) -> list[Labels]:
    """A statistic over dims: channels along them stay, the others pass."""
    source = call.ref(0)
    if source is None:
        return unknown(call, book)
    shape = call.shape(source)
    arguments = {a.name: a for a in call.op.func._schema.arguments}
    values = dict(zip(arguments, call.op.args, strict=False)) | dict(call.op.kwargs)
    dims = values.get("dim")
    reduced = _dims(dims, len(shape)) if dims not in (None, []) else set(range(len(shape)))
    keepdim = bool(values.get("keepdim", False))
    passed = []
    for label in call.labels(0):
        if book.through_norms and label.axis in reduced and not label.index_dims:
            book.mixed.append(Mixed(call.op.index, label))
        elif label.axis in reduced or any(d in reduced for d in label.index_dims):
            book.freeze((label,), f"summed up at {call.op.where}")
        elif keepdim:
            passed.append(label)
        else:
            gone = [d for d in sorted(reduced, reverse=True) if d < label.axis]
            ids = label.ids
            for dim in sorted(reduced, reverse=True):
                ids = ids.squeeze(dim)
            passed.append(Label(ids, label.axis - len(gone)))
    return [tuple(passed) for _ in call.op.outputs]


def pattern(call: Call, book: Book, operands: tuple[int, ...], text: str) -> list[Labels]:
    """Interpret one line of `PATTERNS`."""
    left, right = text.split("->")
    ends: dict[str, list[tuple[int, Label]]] = {}
    refs: list[tuple[Ref, Letters]] = []
    for position, side in zip(operands, left.split(","), strict=True):
        ref = call.ref(position)
        if ref is not None:
            refs.append((ref, _spread(side, len(call.shape(ref)))))
    for number, (ref, letters) in enumerate(refs):
        for label in call.known.get(ref.index, ()):
            ends.setdefault(letters[label.axis], []).append((number, label))
    outputs: list[Label] = []
    out_letters = _spread(right, len(call.out_shapes[0]))
    for letter, found in ends.items():
        outputs += _letter(call, book, letter, found, refs, out_letters)
    return [tuple(outputs), *(() for _ in call.op.outputs[1:])]


@cache
def _spread(side: str, ndim: int) -> Letters:
    """A letter for each dim; `*` stands for as many unnamed dims as the tensor has."""
    letters = tuple(side.split())
    if "*" not in letters:
        return ("1",) * (ndim - len(letters)) + letters
    star = letters.index("*")
    return letters[:star] + ("*",) * (ndim - len(letters) + 1) + letters[star + 1 :]


def _letter(
    call: Call,
    book: Book,
    letter: str,
    found: list[tuple[int, Label]],
    refs: list[tuple[Ref, Letters]],
    out: Letters,
) -> list[Label]:
    """Tie all labels of one letter, and hand them on or end them in a read."""
    labels = tuple(label for _, label in found)
    holders = [n for n, (ref, letters) in enumerate(refs) if _extent(call, ref, letters, letter) > 1]
    if letter in ("*", "1"):
        book.freeze(labels, NOT_A_CHANNEL)
        return []
    if {n for n, _ in found} != set(holders):
        book.freeze(labels, f"meets a dim of fixed size at {call.op.where}")
        return []
    aligned = {n: _shape_to_batch(book, label, refs[n][1]) for n, label in found}
    numbers = sorted(aligned)
    for number in numbers[1:]:
        book.tie(
            _by_letters(aligned[numbers[0]], refs[numbers[0]][1], letter),
            _by_letters(aligned[number], refs[number][1], letter),
        )
    if letter in out:
        return [_to_output(aligned[numbers[0]], refs[numbers[0]][1], out, letter)]
    if len(numbers) == 2:
        (a, b) = numbers
        book.reads.append(Read(call.op.index, refs[a][0].index, aligned[a], refs[b][0].index, aligned[b]))
    else:
        book.freeze(labels, f"summed up at {call.op.where}")
    return []


def _extent(call: Call, ref: Ref, letters: Letters, letter: str) -> int:
    return call.shape(ref)[letters.index(letter)] if letter in letters else 1


def _shape_to_batch(book: Book, label: Label, letters: Letters) -> Label:
    """Rows may differ along a batch letter `b` only; along anything else they are tied."""
    if all(letters[d] == "b" for d in label.index_dims):
        return label
    return book.align(label)


def _by_letters(label: Label, letters: Letters, letter: str) -> Tensor:
    """Ids as (batch or 1, channels)."""
    if "b" not in letters or letter == "b":
        return label.ids.reshape(1, -1)
    return label.ids.movedim(label.axis, -1).reshape(label.ids.shape[letters.index("b")], -1)


def _to_output(label: Label, letters: Letters, out: Letters, letter: str) -> Label:
    rows = _by_letters(label, letters, letter)
    shape = [1] * len(out)
    shape[out.index(letter)] = rows.shape[1]
    if rows.shape[0] > 1:
        shape[out.index("b")] = rows.shape[0]
        if out.index("b") > out.index(letter):
            rows = rows.T
    return Label(rows.reshape(shape), out.index(letter))


@rule("aten::convolution")
def convolution(call: Call, book: Book) -> list[Labels]:
    """``n i *, o i *, o -> n o *``; transposed: the weight is ``i o *``; depthwise channels pass through."""
    transposed, groups = bool(call.op.args[6]), int(call.op.args[8])
    source, weight = call.ref(0), call.ref(1)
    if source is None or weight is None:
        return unknown(call, book)
    per_group = call.shape(weight)[1]
    if groups == 1:
        text = "n i *, i o *, o -> n o *" if transposed else "n i *, o i *, o -> n o *"
        return pattern(call, book, (0, 1, 2), text)
    if per_group == 1 or call.shape(weight)[0] == groups:
        return _depthwise(call, book, transposed)
    return _transposed_groups(call, book, groups) if transposed else _grouped(call, book, groups)


def _channel_label(call: Call, book: Book, position: int, axis: int) -> Label | None:
    """The label along `axis` of an argument, depending on the axis alone; all others are frozen."""
    chosen = None
    for label in call.labels(position):
        if label.axis == axis:
            chosen = book.align(label)
        else:
            book.freeze((label,), NOT_A_CHANNEL)
    return chosen


def _depthwise(call: Call, book: Book, transposed: bool) -> list[Labels]:
    """A filter bank for each input channel: removing the channel removes its filters."""
    groups = int(call.op.args[8])
    data, rows = _channel_label(call, book, 0, 1), _channel_label(call, book, 1, 0)
    bias = _channel_label(call, book, 2, 0)
    source = call.ref(0)
    assert source is not None
    out_channels = call.out_shapes[0][1]
    labels = tuple(label for label in (data, rows, bias) if label is not None)
    if call.shape(source)[1] != groups or data is None or rows is None or (transposed and out_channels != groups):
        book.freeze(labels, f"uneven groups at {call.op.where}")
        return [()]
    repeated = data.ids.reshape(-1).repeat_interleave(rows.ids.numel() // groups)
    book.tie(repeated, rows.ids.reshape(-1))
    if bias is not None:
        book.tie(repeated, bias.ids.reshape(-1))
    return [(along(rows.ids, 1, len(call.out_shapes[0])),)]


def _filters(call: Call, book: Book) -> tuple[Label | None, Label | None]:
    """Labels of the first two dims of the weight; those of the kernel are frozen."""
    by_axis = {label.axis: label for label in call.labels(1)}
    for axis, label in by_axis.items():
        if axis > 1:
            book.freeze((label,), NOT_A_CHANNEL)
    return by_axis.get(0), by_axis.get(1)


def _grouped(call: Call, book: Book, groups: int) -> list[Labels]:
    """Every group keeps equally many channels; a weight column serves the same place in every group."""
    data, bias = _channel_label(call, book, 0, 1), _channel_label(call, book, 2, 0)
    rows, columns = _filters(call, book)
    if rows is None:
        known = tuple(label for label in (data, columns, bias) if label is not None)
        book.freeze(known, f"fixed filters at {call.op.where}")
        return [()]
    if data is None or columns is None:
        book.freeze(tuple(label for label in (data, columns) if label), f"fixed input channels at {call.op.where}")
    else:
        book.tie(data.ids.reshape(groups, -1), columns.ids.reshape(1, -1))
        source, weight = call.ref(0), call.ref(1)
        assert source is not None
        assert weight is not None
        book.reads.append(Read(call.op.index, source.index, data, weight.index, columns, groups))
    book.filter_groups(rows.ids.reshape(groups, -1))
    if bias is not None:
        book.tie(rows.ids.reshape(-1), bias.ids.reshape(-1))
    return [(along(rows.ids, 1, len(call.out_shapes[0])),)]


def _transposed_groups(call: Call, book: Book, groups: int) -> list[Labels]:
    """Weight (in, out / groups): a column gives the same place of every group, rows are the input channels."""
    data, bias = _channel_label(call, book, 0, 1), _channel_label(call, book, 2, 0)
    rows, columns = _filters(call, book)
    if data is None or rows is None or columns is None:
        book.freeze(tuple(label for label in (data, rows, columns, bias) if label), f"uneven groups at {call.op.where}")
        return [()]
    book.tie(data.ids.reshape(-1), rows.ids.reshape(-1))
    book.filter_groups(rows.ids.reshape(groups, -1))
    source, weight = call.ref(0), call.ref(1)
    assert source is not None
    assert weight is not None
    book.reads.append(Read(call.op.index, source.index, data, weight.index, rows, groups))
    given = columns.ids.reshape(-1).repeat(groups)
    if bias is not None:
        book.tie(given, bias.ids.reshape(-1))
    return [(along(given, 1, len(call.out_shapes[0])),)]


@rule("aten::_weight_norm_interface")
def weight_norm(call: Call, book: Book) -> list[Labels]:
    """``g * v / |v|``: the norm runs over all dims but one; only along that one channels are free."""
    direction, norms = call.out_shapes
    dim = int(call.op.args[2]) % len(direction) if len(call.op.args) > 2 else 0
    free = [label for label in (*call.labels(0), *call.labels(1)) if label.axis == dim and not label.index_dims]
    for label in (*call.labels(0), *call.labels(1)):
        if not any(label is known for known in free):
            book.freeze((label,), f"normalised at {call.op.where}")
    passed = book.merge(free, f"two widths meet at {call.op.where}")
    return [passed, passed if len(norms) == len(direction) else ()]


@rule("aten::cat")
def cat(call: Call, book: Book) -> list[Labels]:
    """Along the axis ids are put end to end; along other dims the operands share their channels."""
    refs = [r for r in call.op.args[0] if isinstance(r, Ref)]
    ndim = len(call.out_shapes[0])
    refs = [r for r in refs if len(call.shape(r)) == ndim]
    dim = int(call.op.args[1]) % ndim if len(call.op.args) > 1 else 0
    ends: list[Tensor] = []
    others: list[Label] = []
    for ref in refs:
        own = None
        for label in call.known.get(ref.index, ()):
            if label.axis == dim:
                own = book.align(label)
            elif all(_has_axis(call, r, label.axis) for r in refs) and dim not in label.index_dims:
                others.append(label)
            else:
                book.freeze((label,), f"meets a tensor of fixed size at {call.op.where}")
        size = call.shape(ref)[dim]
        ends.append(torch.zeros(size, dtype=torch.int64) if own is None else own.ids.reshape(-1))
    joined = list(book.merge(others, f"two widths meet at {call.op.where}"))
    ids = torch.cat(ends)
    if ids.numel() > 1 and bool(ids.any()):
        joined.append(along(ids, dim, ndim))
    return [tuple(joined)]


@rule("aten::glu")
def glu(call: Call, book: Book) -> list[Labels]:
    """The second half gates the first: position by position they are one channel."""
    ndim = len(call.out_shapes[0])
    dim = int(call.op.args[1]) % ndim if len(call.op.args) > 1 else ndim - 1
    passed = []
    for label in call.labels(0):
        if label.axis == dim:
            value, gate = book.align(label).ids.chunk(2, dim)
            book.tie(value, gate)
            passed.append(Label(value, dim))
        elif dim in label.index_dims:
            book.freeze((label,), f"gated across its rows at {call.op.where}")
        else:
            passed.append(label)
    return [tuple(passed)]


@rule("aten::stack")
def stack(call: Call, book: Book) -> list[Labels]:
    """A new dim of fixed length; along the others the operands share their channels."""
    refs = [r for r in call.op.args[0] if isinstance(r, Ref)]
    ndim = len(call.out_shapes[0])
    dim = int(call.op.args[1]) % ndim if len(call.op.args) > 1 else 0
    shared: list[Label] = []
    for label in (label for ref in refs for label in call.known.get(ref.index, ())):
        if all(_has_axis(call, ref, label.axis) for ref in refs):
            shared.append(Label(label.ids.unsqueeze(dim), label.axis + (label.axis >= dim)))
        else:
            book.freeze((label,), f"meets a tensor of fixed size at {call.op.where}")
    return [book.merge(shared, f"two widths meet at {call.op.where}")]


def _has_axis(call: Call, ref: Ref, axis: int) -> bool:
    return any(label.axis == axis for label in call.known.get(ref.index, ()))


@rule("aten::constant_pad_nd")
def constant_pad(call: Call, book: Book) -> list[Labels]:
    """Padding a channel dim adds channels that hold a constant; the module keeps their count."""
    ndim = len(call.out_shapes[0])
    pads = list(call.op.args[1])
    passed = []
    for label in call.labels(0):
        position = 2 * (ndim - 1 - label.axis)
        before, after = (pads[position], pads[position + 1]) if position < len(pads) else (0, 0)
        if before == after == 0:
            passed.append(label)
            continue
        if before < 0 or after < 0:
            book.freeze((label,), f"cropped at {call.op.where}")
            continue
        inner = book.align(label)
        pad = Pad(call.op.module, book.fresh(before), book.fresh(after))
        book.pads.append(pad)
        ids = torch.cat([pad.before, inner.ids.reshape(-1), pad.after])
        passed.append(along(ids, label.axis, ndim))
    return [tuple(passed)]


@rule("aten::index")
def index(call: Call, book: Book) -> list[Labels]:
    """Indexing of dims: channels of the other dims pass (any index does, they are the same there)."""
    source = call.ref(0)
    if source is None:
        return unknown(call, book)
    indices = call.op.args[1]
    indexed = {d for d, i in enumerate(indices) if isinstance(i, Ref)}
    shapes = [call.shape(i) if isinstance(i, Ref) else None for i in indices]
    results: list[Label] = []
    for label in call.labels(0):
        if label.axis in indexed or any(d in indexed for d in label.index_dims):
            book.freeze((label,), f"indexed at {call.op.where}")
            continue
        zeros = [None if s is None else torch.zeros(s, dtype=torch.int64) for s in shapes]
        path = route(label, call.shape(source), lambda p, z=zeros: torch.ops.aten.index(p, z))  # type: ignore[misc]
        moved = transport(label, path)
        if moved is None or len(call.out_shapes[0]) != moved[0].ids.ndim:
            book.freeze((label,), f"indexed at {call.op.where}")
        else:
            results.append(compact(moved[0].ids, moved[0].axis))
    return [tuple(results)]


@rule("aten::as_strided_")
def as_strided(call: Call, book: Book) -> list[Labels]:
    """Pooling to one pixel in channels-last order: nothing moves. Any other use is not followed."""
    source = call.ref(0)
    shape, (size, stride) = call.out_shapes[0], call.op.args[1:3]
    pixels = len(shape) > 2 and shape[2:] == (1,) * (len(shape) - 2)
    if source is None or not pixels or call.shape(source) != shape == tuple(size) or list(stride[:2]) != [shape[1], 1]:
        return unknown(call, book)
    return [call.labels(0)]
