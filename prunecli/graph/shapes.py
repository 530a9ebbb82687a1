"""Output shapes of frequent ops on meta tensors, checked like torch does but without its Python decompositions.

They are what a trace spends its time on: a batch norm costs half a millisecond there, a microsecond here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunecli.graph.broadcasting import broadcast, strides

Outputs = Tensor | tuple[Tensor, ...]
_META = torch.device("meta")  # a name would be parsed every time


def shortcut(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Outputs | None:
    """What the op gives for meta tensors, or None where torch has to say it.

    Args:
        name: ``aten.relu``.
        args: positional arguments.
        kwargs: keyword arguments; those of most ops are torch's business.

    Raises:
        RuntimeError: the shapes do not fit, as torch would say.
    """
    known = SHORTCUTS.get(name)
    if known is None or not args or (kwargs and name not in WITH_KEYWORDS):
        return None
    first = args[0][0] if type(args[0]) is list and args[0] else args[0]
    is_meta = first.is_meta if isinstance(first, Tensor) else kwargs.get("device") == _META
    return known(*args, **kwargs) if is_meta else None


def alike(x: Tensor) -> Tensor:
    """A meta tensor of the same shape, strides and dtype; much cheaper than `torch.empty_like`."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=_META)


def sized(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A fresh meta tensor of another shape and the same dtype."""
    return torch.empty(shape, dtype=x.dtype, device=_META)


def _fresh(x: Tensor) -> Tensor | None:
    """What torch computes place by place from one tensor: in its order of dims; None where places overlap."""
    if x.is_contiguous():
        return sized(x, x.shape)
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return None
            expected *= size
    return alike(x)


def _same(x: Tensor, *others: Any) -> Outputs | None:
    return None if any(isinstance(other, Tensor) for other in others) else _fresh(x)


def _contiguous(x: Tensor, *others: Any) -> Outputs | None:
    del others
    return sized(x, x.shape)


def _in_place(x: Tensor, *others: Any) -> Outputs | None:
    return None if any(isinstance(other, Tensor) for other in others) else x


def _clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Outputs | None:
    if memory_format is torch.contiguous_format:
        return sized(x, x.shape)
    return _fresh(x) if memory_format in (None, torch.preserve_format) else None


def _unsafe_view(x: Tensor, shape: Sequence[int]) -> Outputs | None:
    fits = x.is_contiguous() and math.prod(shape) == x.numel() and min(shape, default=0) >= 0
    return sized(x, shape) if fits else None


def _two(x: Tensor, y: Any, *others: Any) -> Outputs | None:
    if others or not x.is_floating_point():
        return None
    if not isinstance(y, Tensor):
        return _same(x) if type(y) in (int, float) else None
    if x.dtype != y.dtype or not y.is_meta:
        return None
    if x.shape == y.shape and x.is_contiguous() and y.is_contiguous():
        return sized(x, x.shape)
    shape = broadcast(x.shape, y.shape)
    return None if shape is None else torch.empty_strided(shape, strides(shape, (x, y)), dtype=x.dtype, device=_META)


def _two_in_place(x: Tensor, y: Any, *others: Any) -> Outputs | None:
    if others or not x.is_floating_point():
        return None
    if not isinstance(y, Tensor):
        return x if type(y) in (int, float) else None
    fits = x.shape == y.shape or broadcast(x.shape, y.shape) == x.shape
    return x if fits and x.dtype == y.dtype and y.is_meta else None


def _insist_on_one_dtype(first: Tensor, *others: Tensor | None) -> None:
    """Torch's kernels do, its meta kernels do not."""
    dtype = first.dtype
    for other in others:
        if other is not None and other.dtype != dtype:
            raise RuntimeError(f"operands of different dtypes: {dtype}, {other.dtype}")


def _insist_on_wide(*operands: Tensor | None) -> None:
    """Normalisations mix dtypes, but not float64 with another."""
    given = [operand for operand in operands if operand is not None]
    if any(operand.dtype == torch.float64 for operand in given):
        _insist_on_one_dtype(*given)


def _batch_norm(x: Tensor, *rest: Any) -> Outputs | None:
    vectors, count = rest[:4], x.shape[1]
    _insist_on_wide(x, *vectors)
    for vector in vectors:
        if vector is not None and vector.shape != (count,):
            raise RuntimeError(f"batch norm of {count} channels got a vector of {tuple(vector.shape)}")
    normal = sized(x, x.shape) if x.is_contiguous() else alike(x)
    return normal, sized(x, (count,)), sized(x, (count,))


def _layer_norm(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Outputs | None:
    del eps
    _insist_on_wide(x, weight, bias)
    tail = tuple(x.shape[x.ndim - len(shape) :])
    for part in (shape, *(t.shape for t in (weight, bias) if t is not None)):
        if tuple(part) != tail:
            raise RuntimeError(f"layer norm over {tuple(part)} got an input of {tuple(x.shape)}")
    statistics = (*x.shape[: x.ndim - len(shape)], *[1] * len(shape))
    return sized(x, x.shape), sized(x, statistics), sized(x, statistics)


def _mean(x: Tensor, dims: Any = None, keepdim: bool = False) -> Outputs | None:
    if not dims or not x.is_floating_point() or not x.is_contiguous():
        return None
    gone = {dim % x.ndim for dim in dims if -x.ndim <= dim < x.ndim}
    if len(gone) < len(dims):
        return None  # for torch to refuse
    return sized(x, [1 if dim in gone else size for dim, size in enumerate(x.shape) if keepdim or dim not in gone])


def _mm(a: Tensor, b: Tensor) -> Outputs | None:
    _insist_on_one_dtype(a, b)
    if a.shape[1] != b.shape[0]:
        raise RuntimeError(f"matrices {tuple(a.shape)} and {tuple(b.shape)} do not fit")
    return sized(a, (a.shape[0], b.shape[1]))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *others: Any) -> Outputs | None:
    _insist_on_one_dtype(bias, a, b)
    if others or a.ndim != 2 or b.ndim != 2 or bias.ndim > 1:
        return None
    if a.shape[1] != b.shape[0] or math.prod(bias.shape) not in (1, b.shape[1]):
        raise RuntimeError(f"matrices {tuple(a.shape)} and {tuple(b.shape)} with {tuple(bias.shape)} do not fit")
    return sized(a, (a.shape[0], b.shape[1]))


def _bmm(a: Tensor, b: Tensor) -> Outputs | None:
    _insist_on_one_dtype(a, b)
    (batch, rows, inner), (others, meets, columns) = a.shape, b.shape
    if batch != others or inner != meets:
        raise RuntimeError(f"batches of matrices {tuple(a.shape)} and {tuple(b.shape)} do not fit")
    return sized(a, (batch, rows, columns))


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Outputs | None:
    first = tensors[0]
    if not -first.ndim <= dim < first.ndim:
        return None
    shape, dim = [*first.shape], dim % first.ndim
    shape[dim] = 0
    for tensor in tensors:
        sizes = [*tensor.shape]
        fits = len(sizes) == len(shape) and sizes[:dim] == shape[:dim] and sizes[dim + 1 :] == shape[dim + 1 :]
        if not (fits and tensor.is_meta and tensor.dtype == first.dtype and tensor.is_contiguous()):
            return None
        shape[dim] += sizes[dim]
    return sized(first, shape)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Outputs | None:
    stride, padding, dilation, transposed, _, groups = settings
    _insist_on_one_dtype(x, weight)
    if transposed or not x.is_contiguous() or x.ndim != weight.ndim or not all(x.shape):
        return None
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise RuntimeError(f"convolution of {tuple(x.shape)} got a weight of {tuple(weight.shape)}, {groups} groups")
    if bias is not None and bias.shape != (weight.shape[0],):
        raise RuntimeError(f"convolution with {weight.shape[0]} filters got a bias of {tuple(bias.shape)}")
    return _swept(x, weight.shape[0], weight.shape[2:], stride, padding, dilation)


def _swept(
    x: Tensor,
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """What a kernel gives that moves over the places of a batch."""
    places = x.shape[2:]
    count = len(places)
    settings = [_each(v, count) for v in (kernel, stride, padding, dilation)]
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(places, *settings, strict=True)]
    if min(sizes, default=1) < 1:
        raise RuntimeError(f"the kernel {tuple(kernel)} is larger than the input {tuple(places)}")
    return sized(x, (x.shape[0], channels, *sizes))


def _each(value: Sequence[int], count: int) -> Sequence[int]:
    return value if len(value) == count else [value[0]] * count


def _max_pool(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,), ceil: bool = False
) -> Outputs | None:
    if x.ndim != 4 or ceil or not x.is_contiguous() or not all(x.shape):
        return None
    found = _swept(x, x.shape[1], kernel, stride or kernel, padding, dilation)
    return found, torch.empty(found.shape, dtype=torch.int64, device=_META)


def _average_pool(
    x: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), ceil: bool = False, *others: Any
) -> Outputs | None:
    del others
    if x.ndim != 4 or ceil or not x.is_contiguous() or not all(x.shape):
        return None
    return _swept(x, x.shape[1], kernel, stride or kernel, padding, (1,))


def _grid_sampler(x: Tensor, grid: Tensor, *settings: Any) -> Outputs | None:
    del settings
    _insist_on_one_dtype(x, grid)
    if x.ndim != 4 or grid.ndim != 4 or not x.is_contiguous() or not all(x.shape):
        return None
    if x.shape[0] != grid.shape[0] or grid.shape[3] != 2:
        raise RuntimeError(f"images {tuple(x.shape)} and places {tuple(grid.shape)} do not fit")
    return sized(x, (*x.shape[:2], *grid.shape[1:3]))


SHORTCUTS: dict[str, Callable[..., Outputs | None]] = {
    "aten.empty": torch.empty,  # torch's function takes a third of the time of its op
    "aten.convolution": _convolution,
    "aten.max_pool2d_with_indices": _max_pool,
    "aten.avg_pool2d": _average_pool,
    "aten.grid_sampler_2d": _grid_sampler,
    "aten.native_batch_norm": _batch_norm,
    "aten.native_layer_norm": _layer_norm,
    "aten.addmm": _addmm,
    "aten.mm": _mm,
    "aten.bmm": _bmm,
    "aten.mean": _mean,
    "aten.cat": _cat,
    "aten.clone": _clone,
    "aten._unsafe_view": _unsafe_view,
    "aten._safe_softmax": _contiguous,
    "aten._softmax": _contiguous,
    **dict.fromkeys(("aten.add", "aten.sub", "aten.mul", "aten.div"), _two),
    **dict.fromkeys(("aten.add_", "aten.sub_", "aten.mul_", "aten.div_"), _two_in_place),
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
WITH_KEYWORDS = {"aten.empty", "aten.clone"}
