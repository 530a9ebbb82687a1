"""Copies of modules: what `copy.deepcopy` gives, without what it costs on the dozen empty dicts of every module."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.graph.shapes import alike
from prunecli.graph.tensors import Module, named_tensors, submodules

Memo = dict[int, Any]
_ALIGNMENT = 64  # bytes, of torch's allocator on the CPU
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device})
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|npu|hpu)(:\d+)?")
_FOR_OLDER_VERSIONS = (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)  # add attributes that these lack
_CONTAINERS = frozenset({dict, OrderedDict, set, list, tuple})  # most are empty: the hooks of a module


def copied(module: Module, memo: Memo | None = None) -> Module:
    """A deep copy; sharing within the module is kept. Attributes that cannot be copied are shared with the original.

    Args:
        module: stays as it is.
        memo: what stands for objects that were copied already, by id, as in `copy.deepcopy`.
    """
    memo = {} if memo is None else memo
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return]
    kind: Any = type(module)
    parametrized = "parametrizations" in module._modules and _is_plain(kind.__base__)
    if not (parametrized or _is_plain(kind)):
        return copy.deepcopy(module, memo)
    own = parametrized or kind.__getstate__ is nn.Module.__getstate__
    state: Any = vars(module) if own else module.__getstate__()  # type: ignore[no-untyped-call]
    if not isinstance(state, dict):
        return copy.deepcopy(module, memo)
    twin: Module = kind.__new__(kind)
    memo[id(module)] = twin
    state = state.copy()
    state.pop("_compiled_call_impl", None)
    _fill(state, memo)
    if parametrized or kind.__setstate__ in _FOR_OLDER_VERSIONS:
        vars(twin).update(state)
    else:
        twin.__setstate__(state)  # type: ignore[no-untyped-call]
    return twin


def moved(module: Module, device: torch.device | str) -> Module:
    """A deep copy on a device, with what `Module.to` leaves where it is: tensors and modules in plain attributes.

    ``self.device = torch.device("cuda")`` says the new one, so that ``x.to(self.device)`` is where the weights are.
    """
    place = torch.device(device)
    elsewhere = _elsewhere(module, place)
    twin = copied(module, {id(tensor): like(tensor, tensor.detach().to(place)) for tensor in elsewhere})
    for part, name, value in _named_elsewhere(twin, place):
        setattr(part, name, str(place) if isinstance(value, str) else place)
    return twin


def placed(module: Module, device: torch.device | str) -> Module:
    """A module where it is to compute: itself where all of it is there already, else a copy."""
    place = torch.device(device)
    there = not _elsewhere(module, place) and not _named_elsewhere(module, place)
    return module if there else moved(module, place)


def _elsewhere(module: nn.Module, place: torch.device) -> list[Tensor]:
    return [t for t in _tensors_in(module, set()) if not t.is_meta and t.device.type != place.type]


def _named_elsewhere(module: nn.Module, place: torch.device) -> list[tuple[nn.Module, str, torch.device | str]]:
    """The attributes that name another device: module, name and value."""
    return [
        (part, name, value)
        for _, part in submodules(module)
        for name, value in vars(part).items()
        if isinstance(value, torch.device) or (isinstance(value, str) and _DEVICE.fullmatch(value))
        if torch.device(value).type not in (place.type, "meta")
    ]


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """All that modules and plain containers hold."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module | dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        held = vars(value) if isinstance(value, nn.Module) else value
        for item in held.values() if isinstance(held, dict) else held:
            yield from _tensors_in(item, seen)


def shadow(module: Module) -> Module:
    """A copy on the meta device: no storage is copied, sharing is kept."""
    return copied(module, {id(tensor): like(tensor, alike(tensor)) for _, tensor in named_tensors(module)})


def aligned(module: Module) -> Module:
    """A copy that shares all tensors but those that lie elsewhere than torch would put them, as in a mapped file.

    In the last bit, what a matrix product gives depends on where its numbers lie.
    """
    odd = {id(t): like(t, t.detach().clone()) for _, t in named_tensors(module) if t.data_ptr() % _ALIGNMENT}
    return copied(module, {id(tensor): tensor for _, tensor in named_tensors(module)} | odd)


def like(original: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` as a parameter where `original` is one."""
    return nn.Parameter(tensor, original.requires_grad) if isinstance(original, nn.Parameter) else tensor


@cache
def _is_plain(kind: Any) -> bool:
    """Whether objects of this class are copied by way of their state alone."""
    return (
        not hasattr(kind, "__deepcopy__")
        and not hasattr(kind, "__getnewargs__")
        and not hasattr(kind, "__getnewargs_ex__")
        and "__reduce_ex__" not in _inherited(kind)
        and "__reduce__" not in _inherited(kind)
    )


def _inherited(kind: Any) -> set[str]:
    """What a class and its bases define, `object` excepted."""
    return {name for base in kind.__mro__[:-1] for name in vars(base)}


def _fill(values: dict[Any, Any], memo: Memo) -> None:
    """Put copies in the place of all values; most are atoms, or the empty dicts of hooks."""
    for name, value in values.items():
        kind = type(value)
        if kind in _ATOMS:
            continue
        if kind in _CONTAINERS and not value:
            values[name] = kind()
        elif kind is not tuple or not _are_atoms(value):
            values[name] = _value(value, memo)


def _are_atoms(values: Iterable[Any]) -> bool:
    return _ATOMS.issuperset(map(type, values))


def _value(value: Any, memo: Memo) -> Any:
    """The copy of one attribute."""
    known = memo.get(id(value))
    if known is not None:
        return known
    kind = type(value)
    if kind is dict or kind is list:
        return _container(value, memo)
    if kind in _ATOMS or (kind is tuple and _are_atoms(value)):
        return value
    if isinstance(value, nn.Module):
        return copied(value, memo)
    if isinstance(value, Tensor) and not value.is_leaf:  # left over from a forward pass
        return value.detach().clone()
    try:
        return copy.deepcopy(value, memo)
    except TypeError:  # locks, loggers' streams, open files
        return value


def _container(value: Any, memo: Memo) -> Any:
    twin = value.copy()
    memo[id(value)] = twin  # before its items, which may hold it
    if isinstance(value, dict):
        _fill(twin, memo)
    else:
        twin[:] = [_value(item, memo) for item in value]
    return twin
