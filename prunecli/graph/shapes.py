"""Output shapes of frequent ops on meta tensors, checked like torch does but without its Python decompositions.

They are what a trace spends its time on: a batch norm costs half a millisecond there, a microsecond here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]


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


def _same(x: Tensor, *others: Any) -> Outputs | None:
    return None if any(isinstance(other, Tensor) for other in others) else torch.empty_like(x)


def _contiguous(x: Tensor, *others: Any) -> Outputs | None:
    del others
    return x.new_empty(x.shape)


def _in_place(x: Tensor, *others: Any) -> Outputs | None:
    return None if any(isinstance(other, Tensor) for other in others) else x


def _two(x: Tensor, y: Any, *others: Any) -> Outputs | None:
    if others or not isinstance(y, Tensor) or x.shape != y.shape or x.dtype != y.dtype or x.stride() != y.stride():
        return None
    return torch.empty_like(x)


def _batch_norm(x: Tensor, *rest: Any) -> Outputs | None:
    *vectors, training, _, _ = rest
    if training:
        return None
    for vector in vectors:
        if vector is not None and tuple(vector.shape) != (x.shape[1],):
            raise RuntimeError(f"batch norm of {x.shape[1]} channels got a vector of {tuple(vector.shape)}")
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _layer_norm(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Outputs | None:
    del eps
    tail = tuple(x.shape[x.ndim - len(shape) :])
    for part in (shape, *(t.shape for t in (weight, bias) if t is not None)):
        if tuple(part) != tail:
            raise RuntimeError(f"layer norm over {tuple(part)} got an input of {tuple(x.shape)}")
    statistics = (*x.shape[: x.ndim - len(shape)], *[1] * len(shape))
    return x.new_empty(x.shape), x.new_empty(statistics), x.new_empty(statistics)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *others: Any) -> Outputs | None:
    if others or a.ndim != 2 or b.ndim != 2 or bias.ndim > 1:
        return None
    if a.shape[1] != b.shape[0] or math.prod(bias.shape) not in (1, b.shape[1]):
        raise RuntimeError(f"matrices {tuple(a.shape)} and {tuple(b.shape)} with {tuple(bias.shape)} do not fit")
    return a.new_empty((a.shape[0], b.shape[1]))


SHORTCUTS: dict[str, Callable[..., Outputs | None]] = {
    "aten.native_batch_norm": _batch_norm,
    "aten.native_layer_norm": _layer_norm,
    "aten.addmm": _addmm,
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
