"""A model whose statistics over channels leave some channels out: the reference for cuts through layer norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.graph.channels import Bools, Channels
from prunecli.graph.tape import packet_name, unfused

# Which occurrence of an op, the dim that its statistic runs over, and the positions that stay.
Plan = dict[tuple[str, int], tuple[int, tuple[int, ...]]]


def selecting(module: nn.Module, channels: Channels, removed: Bools) -> nn.Module:
    """`module` with statistics over the channels that stay; itself where no statistic is concerned."""
    seen: dict[str, int] = {}
    number_of = {}
    for op in channels.tape.ops:
        number_of[op.index] = (op.name, seen.get(op.name, 0))
        seen[op.name] = seen.get(op.name, 0) + 1
    plan: Plan = {}
    for mixed in channels.mixed:
        kept = ~removed[channels.of(mixed.label.rows()[0])]
        if not kept.all():
            plan[number_of[mixed.op]] = (mixed.label.axis, tuple(kept.nonzero()[0].tolist()))
    return _Selecting(module, plan) if plan else module


class _Selecting(nn.Module):
    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.module = module
        self.plan = plan

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with unfused(), _Selector(self.plan):
            return self.module(*args, **kwargs)


class _Selector(TorchDispatchMode):
    def __init__(self, plan: Plan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._plan = plan
        self._seen: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = packet_name(func)
        number = self._seen.get(name, 0)
        self._seen[name] = number + 1
        chosen = self._plan.get((name, number))
        if chosen is None:
            return func(*args, **(kwargs or {}))
        dim, kept = chosen[0], torch.tensor(chosen[1])
        few = args[0].index_select(dim, kept)
        if name not in NORMS:
            return func(few, *args[1:], **(kwargs or {}))
        normal, *statistics = func(few, *NORMS[name](kept, *args[1:]))
        return torch.zeros_like(args[0]).index_copy(dim, kept, normal), *statistics  # what has gone is zero


def _layer_norm(kept: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> tuple[Any, ...]:
    del shape
    return [len(kept)], _chosen(weight, kept), _chosen(bias, kept), *rest


def _group_norm(
    kept: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, *rest: Any
) -> tuple[Any, ...]:
    del c
    return _chosen(weight, kept), _chosen(bias, kept), n, len(kept), *rest


def _batch_norm(kept: Tensor, *rest: Any) -> tuple[Any, ...]:
    """Over the inputs of a filter, which neither scale nor shift know of."""
    del kept
    return rest


def _chosen(vector: Tensor | None, kept: Tensor) -> Tensor | None:
    return None if vector is None else vector.index_select(0, kept)


# The arguments of a normalisation of fewer channels, the first one excepted.
NORMS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "aten.native_layer_norm": _layer_norm,
    "aten.native_group_norm": _group_norm,
    "aten.native_batch_norm": _batch_norm,
}
