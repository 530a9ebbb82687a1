"""Weights as two factors, which are smaller than the weight where its rank is low."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize


class Product(nn.Module):
    """The parametrization of a weight ``A B`` of low rank, (out, k) and (k, in)."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def forward(self, narrow: Tensor, wide: Tensor) -> Tensor:
        """``A B``; B comes first, since an input meets it first."""
        return wide @ narrow

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of this shape, yet to be filled in."""
        return weight.new_zeros(self.rank, weight.shape[1]), weight.new_zeros(weight.shape[0], self.rank)


class TwoLayers(nn.Sequential):
    """The factors of a linear layer, the narrow one first."""

    @property
    def weight(self) -> Tensor:
        """(out, in), for a module around it that reads the weight itself, as `nn.TransformerEncoderLayer` does."""
        return self.get_parameter("1.weight") @ self.get_parameter("0.weight")

    @property
    def bias(self) -> Tensor | None:
        """(out,), likewise."""
        return dict(self.named_parameters()).get("1.bias")


def can_factorise(module: nn.Module, weight: str) -> bool:
    """Whether this weight is a matrix of one linear or recurrent layer alone, and no factor yet."""
    owner, _, attribute = weight.rpartition(".")
    layer, around = module.get_submodule(owner), module.get_submodule(owner.rpartition(".")[0])
    if isinstance(layer, nn.RNNBase):
        is_matrix = attribute.startswith("weight_") and not parametrize.is_parametrized(layer, attribute)
    else:
        is_matrix = type(layer) is nn.Linear and attribute == "weight" and not isinstance(around, TwoLayers)
    return is_matrix and _names(module, weight) == 1


def _names(module: nn.Module, weight: str) -> int:
    """Under how many names the module holds a weight."""
    tensor = module.get_parameter(weight)
    return sum(other is tensor for _, other in module.named_parameters(remove_duplicate=False))


def factorise(module: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Put factors in the place of weights, in place; they are yet to be filled in.

    A linear layer becomes two. A recurrent layer keeps its form and multiplies the factors once for each sequence.

    Args:
        module: stays the same but for these layers.
        ranks: {weight: width between its factors}.

    Raises:
        AttributeError, TypeError, ValueError: no such weight, none that can be factorised, or no rank.
    """
    for name, rank in ranks.items():
        path, _, attribute = name.rpartition(".")
        if not can_factorise(module, name):
            raise TypeError(f"{name} is no weight of one linear or recurrent layer")
        layer, weight = module.get_submodule(path), module.get_parameter(name)
        if not 0 < rank < min(weight.shape):
            raise ValueError(f"{name} has no rank {rank}")
        if isinstance(layer, nn.Linear):
            module.set_submodule(path, _two_layers(layer, rank))
        else:
            parametrize.register_parametrization(layer, attribute, Product(rank), unsafe=True)
    return module


def _two_layers(layer: nn.Linear, rank: int) -> TwoLayers:
    home = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    narrow = nn.Linear(layer.in_features, rank, bias=False, **home)
    return TwoLayers(narrow, nn.Linear(rank, layer.out_features, bias=layer.bias is not None, **home))


def pays(weight: Tensor, rank: int) -> bool:
    """Whether the factors are smaller than the weight."""
    return rank * sum(weight.shape) < weight.numel()
