"""Many processes, started by ``torchrun``: what they tell each other, beside gradients.

All of them take the same decisions; what only one can find out, such as how long something takes, it tells the others.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F

from prunecli.errors import InputError, OutcomeError, summary
from prunecli.ranks import local_rank, rank, world

Value = TypeVar("Value")
_CUT_OFF = ("gloo/transport", "NCCL")  # in what torch says when a connection breaks


def together(device: torch.device | None = None) -> None:
    """Connect all processes, where there are several and they are not yet; they part at exit.

    Args:
        device: where this one computes.

    Raises:
        InputError: they do not find each other.
    """
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what NCCL sums on
    if world() > 1 and not dist.is_initialized():
        both = torch.cuda.is_available() and dist.is_nccl_available()  # each sums the tensors of its own device
        backend = "cpu:gloo,cuda:nccl" if both else "gloo"
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
def accompanied() -> Iterator[None]:
    """What all processes do in step: where one is gone, that is said, and not what the others then stumble over.

    Raises:
        OutcomeError: another process is gone.
    """
    try:
        yield
    except Exception as error:
        if world() > 1 and any(sign in f"{error} {error.__cause__}" for sign in _CUT_OFF):
            hint = "its own message says why; torchrun --max-restarts 3 lets all continue"
            raise OutcomeError(f"another process is gone: {summary(error.__cause__ or error)}", hint=hint) from error
        raise


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
    summed = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(summed)
    return float(summed)


def of_all(mine: Tensor) -> Tensor:
    """(N, ...) of all processes, the first one's first; N may differ."""
    if world() == 1:
        return mine
    rows: list[Any] = [None] * world()
    dist.all_gather_object(rows, len(mine))
    padded = F.pad(mine, [0, 0] * (mine.ndim - 1) + [0, max(rows) - len(mine)])
    parts = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])


def of_first(find: Callable[[], Value]) -> Value:
    """What the first process finds, in all of them; the others wait."""
    if world() == 1:
        return find()
    together()
    found = [find() if rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def share(indices: Tensor) -> Tensor:
    """What this process looks at, where all together look at everything once."""
    return indices[rank() :: world()]


def first_alone(work: Callable[[], Value]) -> Value:
    """What `work` gives, once the first process of this machine has done it: a download, which the others then find."""
    if world() == 1:
        return work()
    together()
    done = [work()] if local_rank() == 0 else []
    total(0)
    return done[0] if done else work()
