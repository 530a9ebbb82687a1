"""Shape and strides of what torch computes position by position from several tensors.

As its TensorIterator finds them; on meta torch takes a third of a millisecond for that.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Sizes = Sequence[int]


def broadcast(a: Sizes, b: Sizes) -> tuple[int, ...] | None:
    """The shape that two give together, None where they do not fit."""
    ndim = max(len(a), len(b))
    pairs = [*zip((1,) * (ndim - len(a)) + (*a,), (1,) * (ndim - len(b)) + (*b,), strict=True)]
    return tuple([n if m == 1 else m for m, n in pairs]) if all(m == n or 1 in (m, n) for m, n in pairs) else None


def strides(shape: Sizes, operands: Sequence[Tensor]) -> list[int]:
    """Strides of the result, which is dense: its dims keep the order that they have in the operands.

    Args:
        shape: of the result.
        operands: broadcast to it.
    """
    found, step = [0] * len(shape), 1
    for dim in _innermost_first(shape, [_spread(operand, shape) for operand in operands]):
        found[dim], step = step, step * max(shape[dim], 1)
    return found


def _spread(operand: Tensor, shape: Sizes) -> list[int]:
    """The strides of an operand along the dims of a shape that it is broadcast to."""
    extra = len(shape) - operand.ndim
    own = zip(operand.stride(), operand.shape, shape[extra:], strict=True)
    return [0] * extra + [0 if size == 1 != there else stride for stride, size, there in own]


def _innermost_first(shape: Sizes, operands: Sequence[Sizes]) -> list[int]:
    """Dims in the order of their strides: an insertion sort, since of some pairs nothing says which lies inside."""
    order = [*range(len(shape))][::-1]
    for last in range(1, len(order)):
        place = last
        for before in reversed(range(last)):
            compared = _compare(order[before], order[place], shape, operands)
            if compared < 0:
                break
            if compared > 0:
                order[before], order[place] = order[place], order[before]
                place = before
    return order


def _compare(dim: int, other: int, shape: Sizes, operands: Sequence[Sizes]) -> int:
    """Negative where `dim` lies inside `other`, positive where outside; the first operand that says so decides."""
    for steps in operands:
        here, there = steps[dim], steps[other]
        if here and there:
            if here != there:
                return here - there
            if shape[dim] > shape[other]:
                return 1
    return 0
