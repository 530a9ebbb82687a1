"""Output shapes of frequent ops on meta tensors, checked like torch does but without its Python decompositions.

They are what a trace spends its time on: a batch norm costs half a millisecond there, a microsecond here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
_META = torch.device("meta")  # a name would be parsed every time


def shortcut(name: str, args: tuple[Any, ...]) -> Outputs | None:
    """What the op gives for meta tensors, or None where torch has to say it.

    Args:
        name: ``aten.relu``.
        args: positional arguments; keyword arguments are torch's business.

    Raises:
        RuntimeError: the shapes do not fit, as torch would say.
    """
    known = SHORTCUTS.get(name)
    if known is None or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    return known(*args)


def alike(x: Tensor) -> Tensor:
    """A meta tensor of the same shape, strides and dtype; much cheaper than `torch.empty_like`."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=_META)


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=_META)


def _same(x: Tensor, *others: Any) -> Outputs | None:
    return None if any(isinstance(other, Tensor) for other in others) else alike(x)


def _contiguous(x: Tensor, *others: Any) -> Outputs | None:
    del others
    return _empty(x, x.shape)


def _in_place(x: Tensor, *others: Any) -> Outputs | None:
    return None if any(isinstance(other, Tensor) for other in others) else x


def _two(x: Tensor, y: Any, *others: Any) -> Outputs | None:
    if others or not isinstance(y, Tensor) or x.dtype != y.dtype or x.ndim != y.ndim:
        return None
    if x.shape == y.shape:
        return alike(x) if x.stride() == y.stride() else None
    pairs = [*zip(x.shape, y.shape, strict=True)]
    if not (x.is_contiguous() and y.is_contiguous() and all(a == b or 1 in (a, b) for a, b in pairs)):
        return None
    return _empty(x, [b if a == 1 else a for a, b in pairs])


def _insist_on_one_dtype(*operands: Tensor | None) -> None:
    """Torch's kernels do, its meta kernels do not."""
    dtypes = {operand.dtype for operand in operands if operand is not None}
    if len(dtypes) > 1:
        raise RuntimeError(f"operands of different dtypes: {', '.join(sorted(map(str, dtypes)))}")


def _insist_on_wide(*operands: Tensor | None) -> None:
    """Normalisations mix dtypes, but not float64 with another."""
    if any(operand is not None and operand.dtype == torch.float64 for operand in operands):
        _insist_on_one_dtype(*operands)


def _batch_norm(x: Tensor, *rest: Any) -> Outputs | None:
    *vectors, _, _, _ = rest
    _insist_on_wide(x, *vectors)
    for vector in vectors:
        if vector is not None and tuple(vector.shape) != (x.shape[1],):
            raise RuntimeError(f"batch norm of {x.shape[1]} channels got a vector of {tuple(vector.shape)}")
    return alike(x), _empty(x, (x.shape[1],)), _empty(x, (x.shape[1],))


def _layer_norm(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Outputs | None:
    del eps
    _insist_on_wide(x, weight, bias)
    tail = tuple(x.shape[x.ndim - len(shape) :])
    for part in (shape, *(t.shape for t in (weight, bias) if t is not None)):
        if tuple(part) != tail:
            raise RuntimeError(f"layer norm over {tuple(part)} got an input of {tuple(x.shape)}")
    statistics = (*x.shape[: x.ndim - len(shape)], *[1] * len(shape))
    return _empty(x, x.shape), _empty(x, statistics), _empty(x, statistics)


def _mean(x: Tensor, dims: Any = None, keepdim: bool = False) -> Outputs | None:
    if not dims or not x.is_floating_point() or not x.is_contiguous():
        return None
    gone = {dim % x.ndim for dim in dims if -x.ndim <= dim < x.ndim}
    if len(gone) < len(dims):
        return None  # for torch to refuse
    return _empty(x, [1 if dim in gone else size for dim, size in enumerate(x.shape) if keepdim or dim not in gone])


def _mm(a: Tensor, b: Tensor) -> Outputs | None:
    _insist_on_one_dtype(a, b)
    if a.shape[1] != b.shape[0]:
        raise RuntimeError(f"matrices {tuple(a.shape)} and {tuple(b.shape)} do not fit")
    return _empty(a, (a.shape[0], b.shape[1]))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *others: Any) -> Outputs | None:
    _insist_on_one_dtype(bias, a, b)
    if others or a.ndim != 2 or b.ndim != 2 or bias.ndim > 1:
        return None
    if a.shape[1] != b.shape[0] or math.prod(bias.shape) not in (1, b.shape[1]):
        raise RuntimeError(f"matrices {tuple(a.shape)} and {tuple(b.shape)} with {tuple(bias.shape)} do not fit")
    return _empty(a, (a.shape[0], b.shape[1]))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Outputs | None:
    stride, padding, dilation, transposed, _, groups = settings
    _insist_on_one_dtype(x, weight)
    if transposed or not x.is_contiguous() or x.ndim != weight.ndim or not all(x.shape):
        return None
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise RuntimeError(f"convolution of {tuple(x.shape)} got a weight of {tuple(weight.shape)}, {groups} groups")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise RuntimeError(f"convolution with {weight.shape[0]} filters got a bias of {tuple(bias.shape)}")
    numbers = zip(
        x.shape[2:], weight.shape[2:], *(_each(v, x.ndim - 2) for v in (stride, padding, dilation)), strict=True
    )
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers]
    if min(sizes, default=1) < 1:
        raise RuntimeError(f"the kernel {tuple(weight.shape[2:])} is larger than the input {tuple(x.shape[2:])}")
    return _empty(x, (x.shape[0], weight.shape[0], *sizes))


def _each(value: Sequence[int], count: int) -> Sequence[int]:
    return value if len(value) == count else [value[0]] * count


SHORTCUTS: dict[str, Callable[..., Outputs | None]] = {
    "aten.convolution": _convolution,
    "aten.native_batch_norm": _batch_norm,
    "aten.native_layer_norm": _layer_norm,
    "aten.addmm": _addmm,
    "aten.mm": _mm,
    "aten.mean": _mean,
    "aten.add": _two,
    "aten.mul": _two,
    "aten._safe_softmax": _contiguous,
    "aten._softmax": _contiguous,
    **dict.fromkeys(
        ("aten.relu", "aten.hardtanh", "aten.silu", "aten.gelu", "aten.sigmoid", "aten.hardswish",
         "aten.hardsigmoid", "aten.tanh", "aten.leaky_relu"),
        _same,
    ),
    **dict.fromkeys(
        ("aten.relu_", "aten.hardtanh_", "aten.silu_", "aten.hardswish_", "aten.hardsigmoid_", "aten.leaky_relu_"),
        _in_place,
    ),
}  # fmt: skip
