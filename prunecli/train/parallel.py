"""Many processes, started by ``torchrun``: what all know together, and batch norm over all of them."""

from __future__ import annotations

import atexit
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.errors import InputError, summary
from prunecli.ranks import rank, world


def together(device: torch.device) -> None:
    """Connect all processes, where there are several and they are not yet; they part at exit.

    Raises:
        InputError: they do not find each other.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what NCCL sums on
    if world() > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            with _stdout_to_stderr():
                store, _, _ = next(rendezvous("env://"))
                dist.init_process_group(backend, store=_unwritten(store), rank=rank(), world_size=world())
        except (RuntimeError, ValueError) as error:
            problem = f"the {world()} processes cannot be connected: {summary(error)}"
            raise InputError(problem, hint="start them with torchrun") from error
        atexit.register(dist.destroy_process_group)


def _unwritten(store: Any) -> Any:
    """A part of the store in which no process of an earlier attempt has left its address.

    ``torchrun`` keeps one store for all attempts, so that a process which comes first would call others where they
    died, for half an hour (pytorch#135712). Each asks for the name of the part under a name that nobody used before,
    and only a first process that lives can answer there.
    """
    name = uuid.uuid4().hex
    if rank() > 0:
        store.set(f"prunecli/{rank()}", name)
        name = store.get(name).decode()
        store.set(f"{name}/{rank()}", "here")
    else:
        _answer(store, name)
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _answer(store: Any, name: str) -> None:
    """Tell the name to all other processes, until each of them has said that it knows it."""
    missing, deadline = set(range(1, world())), time.monotonic() + store.timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise RuntimeError(f"number {', '.join(map(str, sorted(missing)))} did not come")
        for question in (f"prunecli/{other}" for other in missing):
            if store.check([question]):
                store.set(store.get(question).decode(), name)
        missing = {other for other in missing if not store.check([f"{name}/{other}"])}
        time.sleep(0.01)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Gloo of torch 2.10 says on stdout that it is connected; there it would come before our JSON."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def total(value: float) -> float:
    """The sum over all processes."""
    if world() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return float(summed)


def of_all(mine: Tensor) -> Tensor:
    """(N, ...) of all processes, the first one's first; N may differ."""
    if world() == 1:
        return mine
    counts = [torch.empty(1, dtype=torch.long, device=mine.device) for _ in range(world())]
    dist.all_gather(counts, torch.full_like(counts[0], len(mine)))
    padded = mine.new_zeros(int(max(counts)), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def share(indices: Tensor) -> Tensor:
    """What this process looks at, where all together look at everything once."""
    return indices[rank() :: world()]


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
        first: Tensor = _Total.apply(torch.cat([x.sum(dims), x.new_tensor([x.numel() / x.shape[1]])]))
        mean, count = first[:-1] / first[-1], float(first[-1].detach())
        centred = x - mean.reshape(shape)
        variance = _Total.apply(centred.square().sum(dims)) / count
        _remember(norm, mean.detach(), variance.detach() * count / (count - 1))
        normal: Tensor = centred * (variance + norm.eps).rsqrt().reshape(shape)
        if norm.weight is None:
            return normal
        scaled: Tensor = normal * norm.weight.reshape(shape) + norm.bias.reshape(shape)
        return scaled


def _remember(norm: Any, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    step = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, step)
    norm.running_var.lerp_(variance, step)


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
