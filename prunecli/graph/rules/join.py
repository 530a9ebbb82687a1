"""Ops that put channels end to end, side by side or beside a constant."""

from __future__ import annotations

import numpy as np

from prunecli.arrays import Ints
from prunecli.graph.labels import Book, Label, Labels, Pad, along
from prunecli.graph.rules import repetition
from prunecli.graph.rules.call import RULES, Call, rule
from prunecli.graph.rules.repetition import shares
from prunecli.graph.tape import Ref


@rule("aten::cat")
def cat(call: Call, book: Book) -> list[Labels]:
    """Along the axis ids are put end to end; along other dims the operands share their channels."""
    refs = [r for r in call.op.args[0] if isinstance(r, Ref)]
    ndim = len(call.out_shapes[0])
    refs = [r for r in refs if len(call.shape(r)) == ndim]
    dim = int(call.op.args[1]) % ndim if len(call.op.args) > 1 else 0
    ends: list[tuple[int, Label | None]] = []
    others: list[Label] = []
    for ref in refs:
        own = None
        for label in call.known.get(ref.index, ()):
            if label.axis == dim:
                own = book.align(label)
            elif all(shares(call, book, r, label, label.axis) for r in refs) and dim not in label.index_dims:
                others.append(label)
            else:
                book.freeze((label,), f"meets a tensor of fixed size at {call.op.where}")
        ends.append((call.shape(ref)[dim], own))
    joined = list(book.merge(others, f"two widths meet at {call.op.where}"))
    if any(own for _, own in ends):
        parts = [_fixed(call, book, size) if own is None else own.ids.reshape(-1) for size, own in ends]
        joined.append(along(np.concatenate(parts), dim, ndim))
    return [tuple(joined)]


def _fixed(call: Call, book: Book, size: int) -> Ints:
    """Positions that are nobody's channels, (size,)."""
    ids = book.fresh(size)
    book.freeze((Label(ids, 0),), f"of fixed size at {call.op.where}")
    return ids


@rule("aten::glu")
def glu(call: Call, book: Book) -> list[Labels]:
    """The second half gates the first: position by position they are one channel."""
    ndim = len(call.out_shapes[0])
    dim = int(call.op.args[1]) % ndim if len(call.op.args) > 1 else ndim - 1
    passed = []
    for label in call.labels(0):
        if label.axis == dim:
            value, gate = np.split(book.align(label).ids, 2, dim)
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
    lifted = [
        Label(np.expand_dims(label.ids, dim), label.axis + (label.axis >= dim)) for label in _common(call, book, refs)
    ]
    return [book.merge(lifted, f"two widths meet at {call.op.where}")]


def placed(call: Call, book: Book) -> list[Labels]:
    """Places are read or written along one dim; along the others the operands of its rank share their channels."""
    ndim = len(call.out_shapes[0])
    refs = [ref for ref in map(call.ref, (0, 2, 3)) if ref is not None and len(call.shape(ref)) == ndim]
    dim = int(call.op.args[1]) % max(ndim, 1)
    return [book.merge(_common(call, book, refs, dim), f"two widths meet at {call.op.where}")]


RULES |= dict.fromkeys(repetition.PICKS | repetition.WRITES, placed)


def _common(call: Call, book: Book, refs: list[Ref], dim: int | None = None) -> list[Label]:
    """Labels along dims where every operand has one, `dim` excepted; the others are frozen."""
    shared = []
    for label in (label for ref in refs for label in call.known.get(ref.index, ())):
        fits = dim not in (label.axis, *label.index_dims)
        if fits and all(shares(call, book, ref, label, label.axis) for ref in refs):
            shared.append(label)
        else:
            book.freeze((label,), f"meets a tensor of fixed size at {call.op.where}")
    return shared


@rule("aten::constant_pad_nd")
def constant_pad(call: Call, book: Book) -> list[Labels]:
    """Padding a channel dim adds channels that hold a constant; the module keeps their count."""
    ndim = len(call.out_shapes[0])
    pads = list(call.op.args[1])  # of the last dim first
    sides = {ndim - 1 - n: pair for n, pair in enumerate(zip(pads[::2], pads[1::2], strict=True)) if any(pair)}
    passed = []
    for label in call.labels(0):
        before, after = sides.get(label.axis, (0, 0))
        if before == after == 0:
            passed.append(book.align(label) if sides.keys() & set(label.index_dims) else label)
            continue
        if before < 0 or after < 0:
            book.freeze((label,), f"cropped at {call.op.where}")
            continue
        inner = book.align(label)
        pad = Pad(call.op.module, book.fresh(before), book.fresh(after))
        book.pads.append(pad)
        ids = np.concatenate([pad.before, inner.ids.reshape(-1), pad.after])
        passed.append(along(ids, label.axis, ndim))
    return [tuple(passed)]
