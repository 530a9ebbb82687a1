"""Models of which every process holds a part (FSDP2), and the way back to whole tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from prunecli.graph.copying import copied

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def shard(module: nn.Module, device: torch.device) -> None:
    """Leave a part of each weight to this process, on its device; a block is whole only while it runs.

    Blocks move to the device one after the other, so that only a part of the model has to fit there.
    """
    from torch.distributed.fsdp import fully_shard  # most of a second, which few runs need

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in (*_blocks(module), module):
        fully_shard(block, mesh=mesh)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """What the outermost lists and sequences of a model hold, where it has matrices."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [child for child in module.children() if any(p.ndim > 1 for p in child.parameters())]
    return [block for child in module.children() for block in _blocks(child)]


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds only a part of it."""
    return _is_a("torch.distributed.fsdp", "FSDPModule", module)


def _is_part(value: object) -> TypeGuard[DTensor]:
    return _is_a("torch.distributed.tensor", "DTensor", value)


def _is_a(place: str, kind: str, value: object) -> bool:
    """`isinstance` of a class that takes long to load: before it is, nothing is one."""
    return place in sys.modules and isinstance(value, getattr(sys.modules[place], kind))


def sum_gradients(module: nn.Module, together: bool) -> None:
    """Whether the next backward pass ends in a sum over processes, where the module is in parts."""
    if is_sharded(module):
        cast("FSDPModule", module).set_requires_gradient_sync(together)


def whole(tree: Any) -> Any:
    """Nested containers with every tensor as a whole; all processes have to ask at the same time."""
    if _is_part(tree):
        return tree.full_tensor()
    if isinstance(tree, Mapping):
        return {name: whole(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(value) for value in tree)
    return tree


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a whole tensor that is laid out as another one; all of it where that one is whole."""
    if not _is_part(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors; extra state that is none stays."""
    own = module.state_dict()
    module.load_state_dict(own | {name: part_of(tensor, own[name]) for name, tensor in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` of whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        number: {n: part_of(v, parameters[number]) if isinstance(v, Tensor) else v for n, v in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def gathered(module: nn.Module, original: nn.Module) -> nn.Module:
    """A module as a whole, in the shape of the one that it was before; itself where it is one already."""
    if not is_sharded(module):
        return module
    twin = copied(original)
    twin.load_state_dict(whole(module.state_dict()))
    return twin
