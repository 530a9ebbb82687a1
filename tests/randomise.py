"""Make a network as hard as it gets: nothing is zero, one or equal by accident, and slices are zero on purpose."""

from __future__ import annotations

import torch
from torch import nn


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm statistics and affine parameters, random biases, and no parameter that is a constant.

    Initialisers leave the head of a ViT zero and the blocks of a ConvNeXt scaled by 1e-6: no error would be seen.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.5)
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
        bias = getattr(part, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.data.copy_(torch.randn(bias.shape, generator=generator) * 0.3)
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
            part.weight.data.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
    for parameter in module.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.reshape(-1)[0]).all()):
            is_scale = parameter.ndim == 1
            draw = torch.rand if is_scale else torch.randn
            values = draw(parameter.shape, generator=generator)
            parameter.data.copy_(values + 0.5 if is_scale else values * 0.3)
    return module.eval()


def zero_filters(
    module: nn.Module, share: float, seed: int = 0, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,)
) -> nn.Module:
    """Zero a share of the filters of every layer of these kinds, each on its own; biases stay."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, kinds):
            count = part.weight.shape[0]
            gone = torch.randperm(count, generator=generator)[: int(count * share)]
            part.weight.data[gone] = 0
    return module


def zero_weights(module: nn.Module, share: float, seed: int = 0) -> nn.Module:
    """Zero a share of all weights with two or more dims, wherever they are; norms and biases stay."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        if weight.ndim > 1:
            weight.data.masked_fill_(torch.rand(weight.shape, generator=generator) < share, 0)
    return module
