"""Integer attributes that must follow the tensors, by module type. One row for each type."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Edits = dict[str, int | list[int]]


def _conv(module: nn.Module) -> Edits:
    assert isinstance(module, nn.modules.conv._ConvNd)
    weight, groups = module.weight, module.groups
    rows = module.in_channels if module.transposed else module.out_channels
    if groups > 1 and _is_depthwise(module):
        groups = groups * weight.shape[0] // rows  # a filter bank went with each removed channel
    first, second = weight.shape[0], weight.shape[1] * groups
    inputs, outputs = (first, second) if module.transposed else (second, first)
    return {"groups": groups, "in_channels": inputs, "out_channels": outputs}


def _is_depthwise(conv: nn.modules.conv._ConvNd) -> bool:
    if conv.transposed:
        return conv.in_channels == conv.groups
    return conv.in_channels // conv.groups == 1


def _linear(module: nn.Module) -> Edits:
    assert isinstance(module, nn.Linear)
    return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}


def _batch_norm(module: nn.Module) -> Edits:
    vector = next(
        (t for t in (getattr(module, "running_mean", None), getattr(module, "weight", None)) if t is not None), None
    )
    return {} if vector is None else {"num_features": vector.shape[0]}


def _embedding(module: nn.Module) -> Edits:
    assert isinstance(module, nn.Embedding)
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


def _prelu(module: nn.Module) -> Edits:
    assert isinstance(module, nn.PReLU)
    return {"num_parameters": module.weight.shape[0]}


def _recurrent(module: nn.Module) -> Edits:
    assert isinstance(module, nn.RNNBase)
    first, again = module.weight_ih_l0, module.weight_hh_l0
    assert isinstance(first, Tensor)
    assert isinstance(again, Tensor)
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    sizes: Edits = {"input_size": first.shape[1], "hidden_size": again.shape[0] // gates}
    if module.proj_size:
        sizes["proj_size"] = again.shape[1]
    return sizes


FIXES: dict[type[nn.Module], Callable[[nn.Module], Edits]] = {
    nn.modules.conv._ConvNd: _conv,
    nn.Linear: _linear,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
    nn.RNNBase: _recurrent,
}


def edits(module: nn.Module) -> dict[str, Edits]:
    """Attributes that no longer fit the tensors, for every submodule: {path: {attribute: value}}."""
    found: dict[str, Edits] = {}
    for path, submodule in module.named_modules():
        for kind, fix in FIXES.items():
            if isinstance(submodule, kind):
                changed = {k: v for k, v in fix(submodule).items() if getattr(submodule, k) != v}
                if changed:
                    found.setdefault(path, {}).update(changed)
    return found
