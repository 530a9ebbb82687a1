"""Batch norm over the images of many processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.ranks import world


class _Total(torch.autograd.Function):
    """A sum over all processes, through which gradients flow back as their sum."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        del ctx
        summed = mine.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        summed = grads[0].clone()
        dist.all_reduce(summed)
        return summed


class Synchronised(nn.Module):
    """Mixed into the class of a batch norm: its statistics are those of the images of all processes.

    What ``torch.nn.SyncBatchNorm`` is on GPUs, here on the CPU as well.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) of this process, normalised with mean and variance over all of them."""
        norm: Any = self
        if not self.training:
            plain: Tensor = super().forward(x)
            return plain
        dims, shape = [d for d in range(x.ndim) if d != 1], [1, -1, *[1] * (x.ndim - 2)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast it may be bfloat16
        first: Tensor = _Total.apply(torch.cat([wide.sum(dims), wide.new_tensor([x.numel() / x.shape[1]])]))
        mean, count = first[:-1] / first[-1], float(first[-1].detach())
        centred = wide - mean.reshape(shape)
        variance = _Total.apply(centred.square().sum(dims)) / count
        _remember(norm, mean.detach(), variance.detach() * count / (count - 1))
        normal: Tensor = centred * (variance + norm.eps).rsqrt().reshape(shape)
        if norm.weight is not None:
            normal = normal * norm.weight.reshape(shape) + norm.bias.reshape(shape)
        return normal.to(x.dtype)


def _remember(norm: Any, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    step = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), step)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), step)


@cache
def _synchronised_class(kind: Any) -> type[nn.Module]:
    return type(f"Synchronised{kind.__name__}", (Synchronised, kind), {})


@contextmanager
def synchronised(module: nn.Module) -> Iterator[None]:
    """All batch norms of a module share their statistics, where there are several processes."""
    norms: list[Any] = [m for m in module.modules() if isinstance(m, _BatchNorm)] if world() > 1 else []
    kinds: list[Any] = [type(norm) for norm in norms]
    for norm, kind in zip(norms, kinds, strict=True):
        norm.__class__ = _synchronised_class(kind)
    try:
        yield
    finally:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = kind
