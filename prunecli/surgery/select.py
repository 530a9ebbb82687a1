"""A model whose statistics and sums over channels, and whose products of activations, leave some channels out: the
reference for cuts through layer norms, through sums and through attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.arrays import Bools
from prunecli.graph.attention import in_parts
from prunecli.graph.channels import Channels
from prunecli.graph.labels import Mixed, Read, Sum
from prunecli.graph.tape import Ref, kind_of, unfused

# Those that a model calls equally often whatever the batch; a linear layer is now one op, now another.
PRODUCTS = {"aten.bmm", "aten.baddbmm", "aten.convolution"}

Kind = TypeVar("Kind", Mixed, Sum)

# For an occurrence of an op: what takes its place, given the op, its arguments and its keywords.
Plan = dict[tuple[str, int], Callable[[Any, Any, Any], Any]]


def selecting(module: nn.Module, channels: Channels, removed: Bools, products: Sequence[Read]) -> nn.Module:
    """`module` with statistics over the channels that stay, and without the others in sums and some products.

    It is itself where none of these is concerned.
    """
    seen: dict[str, int] = {}
    number_of = {}
    for op in channels.tape.ops:
        number_of[op.index] = (op.name, seen.get(op.name, 0))
        seen[op.name] = seen.get(op.name, 0) + 1
    statistics = {op: _statistic(over, channels, removed) for op, over in _by_op(channels.mixed).items()}
    ends = [Sum(read.op, channels.tape.ops[read.op].args.index(Ref(read.a)), read.a_label) for read in products]
    sums = {op: _sum(over, channels, removed) for op, over in _by_op([*ends, *channels.sums]).items()}
    plan = {number_of[op]: action for op, action in (statistics | sums).items() if action is not None}
    return _Selecting(module, plan) if plan else module


def _by_op(found: Iterable[Kind]) -> dict[int, list[Kind]]:
    """One for each dim that a statistic runs over, or for each argument."""
    by_op: dict[int, list[Kind]] = {}
    for each in found:
        by_op.setdefault(each.op, []).append(each)
    return by_op


def _statistic(over: Sequence[Mixed], channels: Channels, removed: Bools) -> Callable[[Any, Any, Any], Any] | None:
    """What takes the statistic over the channels that stay; None where all do."""
    stays = {mixed.label.axis: ~removed[channels.of(mixed.label.rows()[0])] for mixed in over}
    kept = {dim: torch.from_numpy(stay.nonzero()[0]) for dim, stay in stays.items() if not stay.all()}
    return partial(_over_few, kept) if kept else None


def _over_few(kept: Mapping[int, Tensor], func: Any, args: Any, kwargs: Any) -> Any:
    few, name = args[0], kind_of(func).name
    for dim, places in kept.items():
        few = few.index_select(dim, places)
    if name not in NORMS:
        return func(few, *args[1:], **kwargs)
    ((dim, places),) = kept.items()
    normal, *statistics = func(few, *NORMS[name](places, *args[1:]))
    return torch.zeros_like(args[0]).index_copy(dim, places, normal), *statistics  # what has gone is zero


def _sum(over: Sequence[Sum], channels: Channels, removed: Bools) -> Callable[[Any, Any, Any], Any] | None:
    """What sums, or multiplies and sums, without the removed channels; None where all stay."""
    stays = [(each.argument, torch.from_numpy(~removed[channels.of(each.label.ids)])) for each in over]
    return None if all(stay.all() for _, stay in stays) else partial(_without, stays)


def _without(stays: Sequence[tuple[int, Tensor]], func: Any, args: Any, kwargs: Any) -> Any:
    few = [*args]
    for argument, stay in stays:
        whole = few[argument]  # of several samples, where heads or channels of all of them share a dim: it repeats
        times = [n // m if m > 1 else 1 for n, m in zip(whole.shape, stay.shape, strict=True)]
        few[argument] = whole * stay.repeat(times).to(whole.dtype)
    return func(*few, **kwargs)


class _Selecting(nn.Module):
    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__()
        in_parts(module.modules())
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
        name = kind_of(func).name
        number = self._seen.get(name, 0)
        self._seen[name] = number + 1
        action = self._plan.get((name, number))
        return func(*args, **(kwargs or {})) if action is None else action(func, args, kwargs or {})


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
