"""Expand: a convolution computes only the channels that vary; the others are filled in with the constants they are.

Where a stream keeps a channel because somebody else writes it, a convolution whose own filter for it is dead need
not compute it. Its filters and those of the batch norm behind it go, and the last of the two puts the results back
to their places among the constants. At any input size, in eval and in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.arrays import Bools
from prunecli.checkpoint.journal import Expansion, Journal
from prunecli.graph.copying import copied, like
from prunecli.graph.tape import Example, Op, Tape, record
from prunecli.graph.tensors import named_tensors
from prunecli.surgery.apply import set_attributes
from prunecli.surgery.border import Layer, is_own, layers
from prunecli.surgery.constants import Fields, propagate
from prunecli.surgery.fix import Edits, edits
from prunecli.surgery.pace import kernel_width, pays

KERNELS = 3  # more than without


class Expanded(nn.Module):
    """Mixed into the class of a layer whose output is filled up with constants.

    Attributes:
        expand_kept: (kept,) places of the computed channels.
        expand_constant: (width,) the other channels' values, 0 at the computed ones.
    """

    expand_kept: Tensor
    expand_constant: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, kept, ...) of the layer proper as (N, width, ...)."""
        narrow = super().forward(x)
        tail = [1] * (narrow.ndim - 2)
        constant = self.expand_constant.to(narrow.dtype).reshape(1, -1, *tail)
        wide = constant.repeat(narrow.shape[0], 1, *narrow.shape[2:])
        return wide.index_copy_(1, self.expand_kept, narrow)


@cache
def expanded_class(kind: Any) -> type[nn.Module]:
    """The class of a layer with `Expanded` mixed in."""
    return type(f"Expanded{kind.__name__}", (Expanded, kind), {})


@dataclass(frozen=True)
class _Candidate:
    """A convolution, the layer that ends its chain, and what is known of the channels there."""

    conv: str
    tail: str
    constant: Tensor  # (width,) float64, NaN where it varies
    kept: tuple[int, ...]
    saved: float  # multiply-adds
    moved: float  # numbers that are written or read once more

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.conv, self.tail)))

    @property
    def pays(self) -> bool:
        """Whether the saved work outweighs writing the wide output once more and reading the narrow one."""
        return pays(self.saved, self.moved, KERNELS)


def expand(module: nn.Module, example: Example, mode: str) -> tuple[nn.Module, Journal]:
    """A copy in which convolutions compute only what varies, and the journal of it.

    Args:
        module: stays as it is.
        example: one input, for the tape only.
        mode: ``always``, or ``auto`` for those where it pays.
    """
    tape = record(module, example)
    fields = propagate(tape, dict(named_tensors(module)))
    chosen = [c for c in _candidates(module, tape, fields) if mode == "always" or c.pays]
    plan = {c.tail: Expansion(c.layers, c.kept, len(c.constant)) for c in chosen}
    smaller = narrowed(copied(module), plan)
    for candidate in chosen:
        constant = candidate.constant.clone()
        constant[list(candidate.kept)] = 0
        tail = smaller.get_submodule(candidate.tail)
        dtype = next(p.dtype for p in module.get_submodule(candidate.conv).parameters())
        tail.expand_constant = constant.to(dtype)
    attributes = _counted(smaller, {c.conv: len(c.kept) for c in chosen})
    return smaller, Journal(attributes=attributes, expansions=plan)


def narrowed(module: nn.Module, expansions: dict[str, Expansion]) -> nn.Module:
    """Narrow the layers of a model of full width in place, with constants yet to be filled in."""
    for tail, expansion in expansions.items():
        for layer in (module.get_submodule(name) for name in expansion.layers):
            for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
                if tensor.ndim:
                    rows = tensor.detach().index_select(0, torch.tensor(expansion.kept, device=tensor.device))
                    setattr(layer, name, like(tensor, rows))
        holder = module.get_submodule(tail)
        holder.__class__ = expanded_class(type(holder))  # type: ignore[arg-type]
        holder.register_buffer("expand_kept", torch.tensor(expansion.kept), persistent=False)  # the journal has it
        holder.register_buffer("expand_constant", torch.zeros(expansion.width))
    return module


def collapsed(module: nn.Module, journal: Journal) -> tuple[nn.Module, Journal]:
    """The same model with all channels computed again: what `expand` did is undone, so that more can be cut."""
    wide = copied(module)
    for tail, expansion in journal.expansions.items():
        holder = wide.get_submodule(tail)
        constant = holder.expand_constant
        assert isinstance(constant, Tensor)
        del holder.expand_kept, holder.expand_constant
        holder.__class__ = type(holder).__mro__[2]
        for layer in (wide.get_submodule(name) for name in expansion.layers):
            _widen(layer, expansion, constant if layer is holder else torch.zeros_like(constant))
    attributes = _counted(wide, {expansion.layers[0]: expansion.width for expansion in journal.expansions.values()})
    merged = {path: {**journal.attributes.get(path, {}), **values} for path, values in attributes.items()}
    return wide, replace(journal, attributes={**journal.attributes, **merged}, expansions={})


def _counted(module: nn.Module, rows: Mapping[str, int]) -> dict[str, Edits]:
    """Set how many filters some convolutions have, and what follows from it.

    Elsewhere a depthwise convolution that loses filters has lost their inputs, and so groups; here it has not.
    """
    for path, count in rows.items():
        conv: Any = module.get_submodule(path)
        conv.out_channels = count
    attributes = edits(module)
    set_attributes(module, attributes)
    for path, count in rows.items():
        attributes.setdefault(path, {})["out_channels"] = count
    return attributes


def _widen(layer: nn.Module, expansion: Expansion, constant: Tensor) -> None:
    """Put rows back that give `constant` whatever comes in."""
    is_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    neutral = {"running_var": torch.ones_like(constant)}
    if is_norm and layer.bias is None:
        neutral["running_mean"] = -constant * (1 + float(layer.eps)) ** 0.5
    else:
        neutral["bias"] = constant
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.ndim:
            rows = tensor.new_zeros(expansion.width, *tensor.shape[1:])
            if name in neutral:
                rows.copy_(neutral[name])
            rows[list(expansion.kept)] = tensor.detach()
            setattr(layer, name, like(tensor, rows))


def _candidates(module: nn.Module, tape: Tape, fields: Fields) -> Iterable[_Candidate]:
    """Every plain convolution with dead channels behind it."""
    readers, calls = tape.readers(), layers(module, tape, ("aten.convolution", "aten.native_batch_norm"))
    for layer in calls.values():
        op, tail = layer.op, layer
        if not _computes_rows(op, module):
            continue
        following = readers.get(layer.result, [])
        if len(following) == 1 and _is_norm(following[0], module, calls):
            tail = calls[following[0].module]
        constant = _constants(fields.get(tail.result), tape.shapes[op.outputs[0]])
        groups, filters = int(op.args[8]), tape.shapes[op.args[1].index]
        kept = _kept(constant, groups)
        if len(kept) < filters[0]:
            batch, _, *size = tape.shapes[op.outputs[0]]
            places, dead = batch * math.prod(size), filters[0] - len(kept)
            spared = 0 if tail is layer else 2 * dead  # a norm reads and writes no more than what varies
            saved, moved = places * dead * math.prod(filters[1:]), places * (filters[0] + len(kept) - spared)
            yield _Candidate(op.module, tail.op.module, constant, kept, saved, moved)


def _computes_rows(op: Op, module: nn.Module) -> bool:
    """A convolution with a filter for each output channel, in a module of its own."""
    if op.name != "aten.convolution" or op.args[6]:
        return False
    layer: Any = module.get_submodule(op.module)
    return _is_leaf(layer, nn.modules.conv._ConvNd) and bool(int(op.args[8]) < layer.out_channels)


def _is_norm(op: Op, module: nn.Module, calls: Mapping[str, Layer]) -> bool:
    """A batch norm in a module of its own."""
    own = op.name == "aten.native_batch_norm" and is_own(op, calls)
    return own and _is_leaf(module.get_submodule(op.module), nn.modules.batchnorm._BatchNorm)


def _is_leaf(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return isinstance(layer, kind) and not isinstance(layer, Expanded) and not list(layer.children())


def _constants(field: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """(width,) the value of each channel, NaN where it varies."""
    width = shape[1]
    if field is None or any(n > 1 for dim, n in enumerate(field.shape) if dim != 1):
        return torch.full((width,), torch.nan, dtype=torch.float64)
    return field.reshape(-1).expand(width)


def _kept(constant: Tensor, groups: int) -> tuple[int, ...]:
    """The channels that vary; every group of a grouped convolution keeps equally many, and at least one."""
    varies: Bools = constant.isnan().reshape(groups, -1).numpy()
    size = varies.shape[1]
    most = max(1, int(varies.sum(1).max()))
    most = most if groups == 1 else min(kernel_width(most), size)
    rows = [np.sort(np.argsort(~row, kind="stable")[:most]) + number * size for number, row in enumerate(varies)]
    return tuple(np.concatenate(rows).tolist())
