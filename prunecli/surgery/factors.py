"""Linear layers as two factors, which are smaller than the layer where its rank is low."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def factorise(module: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Put two linear layers in the place of one, in place; their weights are yet to be filled in.

    Args:
        module: stays the same but for these layers.
        ranks: {path of a linear layer: width between the factors}.

    Raises:
        AttributeError, TypeError, ValueError: no such layer, it is not linear, or no rank.
    """
    for path, rank in ranks.items():
        layer = module.get_submodule(path)
        if type(layer) is not nn.Linear:
            raise TypeError(f"{path} is no linear layer")
        if not 0 < rank < min(layer.in_features, layer.out_features):
            raise ValueError(f"{path} has no rank {rank}")
        home = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        narrow = nn.Linear(layer.in_features, rank, bias=False, **home)
        wide = nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **home)
        module.set_submodule(path, nn.Sequential(narrow, wide))
    return module


def pays(layer: nn.Linear, rank: int) -> bool:
    """Whether the factors have fewer weights than the layer."""
    return rank * (layer.in_features + layer.out_features) < layer.in_features * layer.out_features
