"""Values that are alike all along a dim, such as ``mask.expand_as(x)`` and ``torch.ones(x.shape)``.

They belong to whatever channels they meet. That their size follows is for the trial cut to find out.
"""

from __future__ import annotations

import torch

from prunecli.graph.labels import Book, Label, Labels, Repeated, along
from prunecli.graph.rules.call import RULES, Call, dims_of
from prunecli.graph.rules.layout import layout
from prunecli.graph.rules.norm import REDUCTIONS
from prunecli.graph.tape import Op, Ref

# Zero everywhere, or still to be written.
BLANK = {"aten.zeros", "aten.new_zeros", "aten.empty", "aten.new_empty"}
UNIFORM = {"aten.ones", "aten.full", "aten.new_ones", "aten.new_full"}
PICKS = {"aten.gather", *(f"aten.scatter{kind}{end}" for kind in ("", "_add", "_reduce") for end in ("", "_"))}
WRITES = {"aten.index_add", "aten.index_add_", "aten.index_copy", "aten.index_copy_"}
# What looks at every position by itself, beside what torch tags as pointwise.
_BY_POSITION = {"aten.clone", "aten._to_copy", "aten.alias", "aten.detach", "aten.cat", "aten.stack", *PICKS, *WRITES}


def blank(call: Call, book: Book) -> list[Labels]:
    """Whatever channels they meet, their positions may belong to them, as in the first state of a recurrent layer.

    That its size follows is for the trial cut to find out.
    """
    (shape,) = call.out_shapes
    ids = [book.fresh(size) if size > 1 else None for size in shape]
    book.tell(call.op.module, shape, ids)
    return [tuple(along(own, dim, len(shape)) for dim, own in enumerate(ids) if own is not None)]


def uniform(call: Call, book: Book) -> list[Labels]:
    """One number everywhere, until something is written there."""
    (shape,) = call.out_shapes
    if any(call.op.outputs[0] in op.clobbers for op in call.tape.ops):
        return blank(call, book)
    book.repeated[call.op.outputs[0]] = Repeated(frozenset(range(len(shape))))
    return [()]


def spread(call: Call, book: Book) -> list[Labels]:
    """Dims of one position, and new ones, get as many as the op is told."""
    (shape,), source = call.out_shapes, call.shape(call.op.refs[0])
    padded = (1,) * (len(shape) - len(source)) + source
    book.repeated[call.op.outputs[0]] = Repeated(frozenset(dim for dim, size in enumerate(padded) if size == 1))
    return layout(call, book)


RULES |= dict.fromkeys(BLANK, blank) | dict.fromkeys(UNIFORM, uniform)
RULES |= dict.fromkeys(("aten.expand", "aten.repeat"), spread)


def carry_on(call: Call, book: Book) -> None:
    """What is computed position by position from operands that are alike along a dim is alike there as well."""
    if torch.Tag.nondeterministic_seeded in call.op.func.tags:
        return
    if not any(ref.index in book.repeated for ref in call.op.refs):
        return
    for output, shape in zip(call.op.outputs, call.out_shapes, strict=True):
        dims = {dim for dim in range(len(shape)) if all(_is_alike(call, book, ref, dim, shape) for ref in call.op.refs)}
        sources = tuple(ref.index for ref in call.op.refs if call.shape(ref) == shape)
        book.repeated[output] = Repeated(frozenset(dims), sources)


def _is_alike(call: Call, book: Book, ref: Ref, dim: int, shape: tuple[int, ...]) -> bool:
    """Whether an operand is alike along a dim of the result, because it is repeated or broadcast."""
    own = dim - len(shape) + len(call.shape(ref))
    known = book.repeated.get(ref.index)
    return own < 0 or call.shape(ref)[own] == 1 or (known is not None and own in known.dims)


def shares(call: Call, book: Book, ref: Ref, label: Label, axis: int) -> bool:
    """Whether an operand has channels along `axis`, or takes over those of a label there."""
    if any(own.axis == axis for own in call.known.get(ref.index, ())):
        return True
    size = label.ids.shape[label.axis]
    if label.index_dims or call.shape(ref)[axis] != size or not _is_free(call, book, ref.index, axis):
        return False
    _take_over(call, book, ref.index, along(label.ids.reshape(-1), axis, len(call.shape(ref))))
    return True


def _is_free(call: Call, book: Book, index: int, axis: int) -> bool:
    """Whether nobody sees how often a value is repeated: a sum over it would."""
    known = book.repeated.get(index)
    if known is None or axis not in known.dims:
        return False
    readers = (op for op in call.tape.ops if any(ref.index == index for ref in op.refs))
    return all(_is_blind(call, op, index, axis) for op in readers) and all(
        _is_free(call, book, source, axis) for source in known.sources
    )


def _is_blind(call: Call, op: Op, index: int, axis: int) -> bool:
    """Whether an op gives for each position along the axis what it would give if there were more or fewer of them."""
    if op.name in REDUCTIONS:
        dims = Call(op, call.tape, call.known).named("dim", None)
        return dims not in (None, []) and axis not in dims_of(dims, len(call.tape.shapes[index]))
    if op.name == "aten.convolution":
        return axis == 0 and op.args[1] == Ref(index)  # filters
    return op.kind.pointwise or op.name in _BY_POSITION


def _take_over(call: Call, book: Book, index: int, label: Label) -> None:
    call.known[index] = (*call.known.get(index, ()), label)
    for source in book.repeated[index].sources:
        _take_over(call, book, source, label)
