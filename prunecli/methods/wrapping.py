"""Parametrizations of the weights of a model, in every layer that holds them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.utils import parametrize

from prunecli.graph.tensors import submodules


def wrap(module: nn.Module, weight: str, by: nn.Module) -> None:
    """Layers that hold a weight use what `by` makes of it; after another parametrization, where there is one."""
    for layer, attribute in _places(module, weight):
        parametrize.register_parametrization(layer, attribute, by, unsafe=True)


def bake(module: nn.Module, weights: Sequence[str]) -> None:
    """Leave plain weights, as the layers used them; layers that shared one share it still."""
    module.eval()
    for weight in dict.fromkeys(weights):
        for number, (layer, attribute) in enumerate(_places(module, weight)):
            parametrize.remove_parametrizations(layer, attribute, leave_parametrized=number == 0)


def _places(module: nn.Module, weight: str) -> list[tuple[nn.Module, str]]:
    """The layers that hold a weight, and what they call it."""
    owner, _, attribute = weight.rpartition(".")
    wanted = _held(module.get_submodule(owner))[attribute]
    layers = [part for _, part in submodules(module) if not isinstance(part, parametrize.ParametrizationList)]
    return [(layer, name) for layer in layers for name, tensor in _held(layer).items() if tensor is wanted]


def _held(layer: nn.Module) -> dict[str, object]:
    """The parameters of a layer by name; of a parametrized one what is below."""
    applied = getattr(layer, "parametrizations", {})
    return {**layer._parameters, **{name: getattr(below, "original", None) for name, below in applied.items()}}
