"""The modules, parameters and buffers of a module, as torch's generators give them, without a generator per level.

And the state that the tensors of a model must be in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

Module = TypeVar("Module", bound=nn.Module)


EXTRA = "_extra_state"  # what a module with `get_extra_state` keeps beside its tensors


def submodules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module, the module itself first; a shared one comes once, under its first path."""
    found: dict[nn.Module, str] = {}
    waiting = [("", module)]
    while waiting:
        path, part = waiting.pop()
        if part not in found:
            found[part] = path
            children = part._modules
            if children:
                prefix = f"{path}." if path else ""
                waiting += [(prefix + name, child) for name, child in reversed(children.items()) if child is not None]
    return [(path, part) for part, path in found.items()]


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers; a shared tensor comes once, under its first name."""
    parts = submodules(module)
    for kind in ("_parameters", "_buffers"):
        seen = set()
        for path, part in parts:
            own = getattr(part, kind)
            if not own:
                continue
            prefix = f"{path}." if path else ""
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield prefix + name, tensor


def sharing(module: nn.Module) -> set[str]:
    """Paths of the layers that hold a parameter which another layer holds as well; one under two names is one layer."""
    parts = submodules(module)
    holders = Counter(id(parameter) for _, part in parts for parameter in part._parameters.values())
    return {
        path for path, part in parts if any(p is not None and holders[id(p)] > 1 for p in part._parameters.values())
    }


def stored(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that files hold, shared ones under all of their names; extra state may be something else."""
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def unstored(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that no file holds: the architecture makes them."""
    held = stored(module)
    return {name: buffer for name, buffer in module.named_buffers() if name not in held}


def home(module: nn.Module) -> Tensor:
    """An empty tensor of the device and dtype that inputs get: those of the first floating-point parameter.

    Complex numbers and integers, as of codebooks, come from them on the way. Without any it is a float on the CPU.
    """
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.empty(0, dtype=first.dtype, device=first.device)


def dtype_name(dtype: torch.dtype) -> str:
    """As people write it: ``float32``."""
    return str(dtype).removeprefix("torch.")


_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def cast(module: Module, dtype: torch.dtype) -> Module:
    """The module with its numbers in `dtype`, in place, both parts of complex ones as well: `Module.to` drops one."""

    def to_dtype(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(_COMPLEX.get(dtype))
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    module._apply(to_dtype)  # type: ignore[no-untyped-call]
    return module


def row_major(module: Module) -> Module:
    """The module with its tensors in the order in which files hold them, in place: ``channels_last`` weights are not.

    Kernels round otherwise on other strides, so that only this can be reloaded to identical outputs.
    """
    for _, tensor in named_tensors(module):
        if tensor.layout is torch.strided and not in_rows(tensor):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return module


def in_rows(tensor: Tensor) -> bool:
    """Whether the strides are those of a fresh tensor; torch calls a 1x1 kernel contiguous in ``channels_last`` too."""
    return tensor.stride() == torch.empty(tensor.shape, device="meta").stride()


def weight_norms(module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Names of magnitude and direction of every weight with weight norm, and the dim that the norm leaves out."""
    for path, part in submodules(module):
        prefix = f"{path}." if path else ""
        for name, applied in getattr(part, "parametrizations", {}).items():
            if isinstance(applied[0], _WeightNorm):
                below = f"{prefix}parametrizations.{name}.original"
                yield f"{below}0", f"{below}1", applied[0].dim
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield f"{prefix}{hook.name}_g", f"{prefix}{hook.name}_v", hook.dim
