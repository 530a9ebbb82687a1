"""Ops that treat every position alike."""

from __future__ import annotations

from prunecli.graph.labels import Book, Label, Labels
from prunecli.graph.rules import repetition
from prunecli.graph.rules.call import RULES, Call
from prunecli.graph.tape import Ref

# Elementwise in what they do to channels, though torch does not tag them so.
ELEMENTWISE = {
    "aten." + name
    for name in (
        "alias", "detach", "clone", "contiguous", "lift_fresh", "fill_", "zero_", "copy_", "_to_copy", "zeros_like",
        "ones_like", "full_like", "empty_like", "hardswish", "hardswish_", "log_sigmoid_forward", "complex",
        "rrelu_with_noise",
        "fake_quantize_per_tensor_affine_cachemask", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    )
}  # fmt: skip
DRAWS = {"aten." + name for name in ("rand_like", "randn_like", "bernoulli", "bernoulli_", "native_dropout")}


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
            if not _fits(call, book, ref, label, ndim):
                book.freeze((label,), f"meets a tensor of fixed size at {call.op.where}")
    repetition.carry_on(call, book)
    merged = book.merge(lifted, f"two widths meet at {call.op.where}")
    return [merged if len(shape) == ndim else () for shape in call.out_shapes]


def _fits(call: Call, book: Book, ref: Ref, label: Label, ndim: int) -> bool:
    shape = call.shape(ref)
    axis = label.axis - (ndim - len(shape))
    return axis < 0 or shape[axis] == 1 or repetition.shares(call, book, ref, label, axis)


def draws(call: Call, book: Book) -> list[Labels]:
    """Random numbers for each position: in eval mode, fewer channels would get others than they had."""
    outputs = pointwise(call, book)
    if not call.tape.training:
        book.freeze(sum(outputs, ()), f"random numbers are drawn at {call.op.where}")
    return outputs


def triangle(call: Call, book: Book) -> list[Labels]:
    """What lies on one side of a diagonal stays, the rest is zero: positions of the last two dims stay whole."""
    ndim = len(call.out_shapes[0])
    whole = tuple(label for label in call.labels(0) if label.axis >= ndim - 2)
    book.freeze(whole, f"one side of a diagonal is taken at {call.op.where}")
    return [call.labels(0)]


TRIANGLES = {f"aten.{name}{end}" for name in ("tril", "triu") for end in ("", "_")}
RULES |= dict.fromkeys(TRIANGLES, triangle)
RULES |= dict.fromkeys(ELEMENTWISE, pointwise) | dict.fromkeys(DRAWS, draws)
