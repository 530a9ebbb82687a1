"""Fold batch norm into the convolution or linear layer before it: exact in eval, one layer less."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import TAPS, Journal
from prunecli.graph.copying import copied, like
from prunecli.graph.tape import Example, Tape, record
from prunecli.surgery.border import Bordered, is_own, layers

_WRITERS = {"aten.convolution": nn.modules.conv._ConvNd, "aten.addmm": nn.Linear, "aten.mm": nn.Linear}


def fold_batchnorm(module: nn.Module, example: Example) -> tuple[nn.Module, Journal]:
    """A copy whose batch norms have gone into the layers that alone feed them, and the journal of it.

    ``y = gamma (w x + b - mean) / sqrt(var + eps) + beta`` is ``(s w) x + s (b - mean) + beta`` with
    ``s = gamma / sqrt(var + eps)`` (Jacob et al. 2018, arXiv 1712.05877, section 3.2).

    Args:
        module: stays as it is.
        example: one input, for the tape only.
    """
    pairs = _pairs(module, record(module, example))
    folded = copied(module)
    for layer, norm in pairs:
        _fold(folded.get_submodule(layer), folded.get_submodule(norm))
    names = tuple(sorted(norm for _, norm in pairs))
    drop(folded, names)
    return folded, Journal(folded=names)


def drop(module: nn.Module, norms: tuple[str, ...]) -> None:
    """Put nothing in the place of batch norms.

    Raises:
        AttributeError, TypeError: a name is none of a batch norm.
    """
    for name in norms:
        if not isinstance(module.get_submodule(name), nn.modules.batchnorm._BatchNorm):
            raise TypeError(f"{name} is no batch norm")
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, nn.Identity())


def _pairs(module: nn.Module, tape: Tape) -> list[tuple[str, str]]:
    """(layer, batch norm) where each is called once and nobody else sees the layer's result."""
    readers, calls, found = tape.readers(), layers(module, tape, (*_WRITERS, "aten.native_batch_norm")), []
    for layer in calls.values():
        op, following = layer.op, readers.get(layer.result, [])
        if op.name not in _WRITERS or len(following) != 1 or not is_own(following[0], calls):
            continue
        norm = following[0]
        exact = type(module.get_submodule(norm.module)) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        own = isinstance(module.get_submodule(op.module), _WRITERS[op.name])
        if exact and own and not norm.args[5] and layer.result not in tape.outputs:
            found.append((op.module, norm.module))
    return found


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    start = torch.zeros_like(scale) if bias is None else bias.detach().double()  # type: ignore[operator]
    shift = (start - norm.running_mean.double()) * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach().double()
    by_row = _per_output(layer, scale, weight.ndim)
    layer.weight = like(weight, (weight.detach().double() * by_row).to(weight.dtype))
    layer.register_parameter("bias", nn.Parameter(shift.to(weight.dtype)))
    if isinstance(layer, Bordered):
        taps = layer.bias_taps
        layer.register_parameter(TAPS, nn.Parameter((taps.detach().double() * by_row).to(taps.dtype)))


def _per_output(layer: nn.Module, scale: Tensor, ndim: int) -> Tensor:
    """The scale along the outputs of a weight; a transposed convolution holds them in dim 1, by group."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        rows = scale.reshape(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1)
        return rows.reshape(layer.in_channels, -1, *[1] * (ndim - 2))
    return scale.reshape(-1, *[1] * (ndim - 1))
