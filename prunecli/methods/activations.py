"""Norms of what layers read on a few training images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunecli.graph.copying import copied
from prunecli.methods.base import Evidence


def input_norms(evidence: Evidence, images: int, method: str) -> dict[str, Tensor]:
    """For each linear layer and convolution the 2-norm of each input channel over all images and places.

    Returns:
        {module: norms in a shape that broadcasts against its weight}; transposed convolutions are left out.

    Raises:
        InputError: no data is given.
    """
    module = copied(evidence.module).eval()
    squares: dict[str, Tensor] = {}
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            handles.append(part.register_forward_pre_hook(_collect(squares, name, part)))
    with torch.no_grad():
        for pictures, _ in evidence.images(images, method):
            module(pictures)
    for handle in handles:
        handle.remove()
    return {name: _against_weight(total.sqrt(), module.get_submodule(name)) for name, total in squares.items()}


def _collect(squares: dict[str, Tensor], name: str, part: nn.Module) -> Any:
    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0].detach().double()
        dim = -1 if isinstance(part, nn.Linear) else 1
        own = x.square().sum([d for d in range(x.ndim) if d != dim % x.ndim])
        squares[name] = squares.get(name, torch.zeros_like(own)) + own

    return hook


def _against_weight(norms: Tensor, part: nn.Module) -> Tensor:
    """(in,) as (1, in, ...); a grouped convolution's rows read the channels of their group."""
    weight = part.weight
    assert isinstance(weight, Tensor)
    if isinstance(part, nn.Linear):
        return norms.reshape(1, -1)
    assert isinstance(part, nn.modules.conv._ConvNd)
    rows = norms.reshape(part.groups, 1, -1).expand(-1, weight.shape[0] // part.groups, -1)
    return rows.reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))
