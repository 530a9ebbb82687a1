"""Integer attributes that must follow the tensors, by module type. One row for each type."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from prunecli.graph.tensors import submodules

Edits = dict[str, int | list[int]]


def _weight(module: nn.Module) -> Tensor:
    """That of a layer; where a hook computes it before every pass, the parameter that has its shape."""
    for name in ("weight_orig", "weight_v", "weight"):
        parameter = module._parameters.get(name)
        if parameter is not None:
            return parameter
    assert isinstance(module.weight, Tensor)
    return module.weight


def _conv(module: nn.Module) -> Edits:
    assert isinstance(module, nn.modules.conv._ConvNd)
    weight, groups = _weight(module), module.groups
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
    weight = _weight(module)
    return {"out_features": weight.shape[0], "in_features": weight.shape[1]}


def _bilinear(module: nn.Module) -> Edits:
    assert isinstance(module, nn.Bilinear)
    out, first, second = module.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


def _batch_norm(module: nn.Module) -> Edits:
    vector = next(
        (t for t in (getattr(module, "running_mean", None), getattr(module, "weight", None)) if t is not None), None
    )
    return {} if vector is None else {"num_features": vector.shape[0]}


def _layer_norm(module: nn.Module) -> Edits:
    """One dim only; over several nothing is ever cut."""
    weight = module.weight
    return {"normalized_shape": [len(weight)]} if isinstance(weight, Tensor) and weight.ndim == 1 else {}


def _group_norm(module: nn.Module) -> Edits:
    """Groups go as a whole; one group alone gets narrower."""
    assert isinstance(module, nn.GroupNorm)
    if module.weight is None:
        return {}
    size, old = module.weight.shape[0], module.num_channels // module.num_groups
    return {"num_channels": size, "num_groups": size // old if module.num_groups > 1 else 1}


def _embedding(module: nn.Module) -> Edits:
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
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


def _recurrent_cell(module: nn.Module) -> Edits:
    assert isinstance(module, nn.modules.rnn.RNNCellBase)
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def _conv1d_of_transformers(module: nn.Module) -> Edits:
    """A linear layer with the weight transposed."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return {"nx": weight.shape[0], "nf": weight.shape[1]}


FIXES_BY_NAME: dict[str, Callable[[nn.Module], Edits]] = {  # classes of libraries that need not be there
    "transformers.pytorch_utils.Conv1D": _conv1d_of_transformers,
}
FIXES: dict[type[nn.Module], Callable[[nn.Module], Edits]] = {
    nn.modules.conv._ConvNd: _conv,
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    nn.PReLU: _prelu,
    nn.RNNBase: _recurrent,
    nn.modules.rnn.RNNCellBase: _recurrent_cell,
}


# What attention modules call the sizes of their heads. Changed only where the value is the size before the cut, and
# only kept where the trial cut shows that the module then does the same.
HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "nhead", "heads", "num_key_value_heads")
WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_kv", "dim_head", "head_size")
PRODUCTS = ("all_head_size", "inner_dim", "attn_dim", "split_size", "hidden_size", "hidden_dim")


def head_numbers(module: nn.Module) -> frozenset[int]:
    """How many heads a module says it has: of queries, of keys and values."""
    own = vars(module)
    return frozenset(own[name] for name in HEADS if type(own.get(name)) is int)


def head_edits(module: nn.Module, before: tuple[int, int], after: tuple[int, int]) -> Edits:
    """Attributes of an attention module that count heads, their width or both.

    Args:
        module: that splits its channels into heads.
        before: (heads, width of each) before the cut.
        after: the same after the cut.
    """
    fixed_width = isinstance(module, nn.MultiheadAttention)  # its scale follows from the width
    sizes = {HEADS: 0} if fixed_width else {HEADS: 0, WIDTHS: 1}
    changes = {name: (before[i], after[i]) for names, i in sizes.items() for name in names}
    changes |= dict.fromkeys(PRODUCTS, (before[0] * before[1], after[0] * after[1]))
    own = vars(module)
    return {n: new for n, (old, new) in changes.items() if type(own.get(n)) is int and own[n] == old != new}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@cache
def _fixes(kind: Any) -> tuple[Callable[[nn.Module], Edits], ...]:
    """Those of a class."""
    named = FIXES_BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
    return (*(fix for base, fix in FIXES.items() if issubclass(kind, base)), *([named] if named else []))


def edits(module: nn.Module) -> dict[str, Edits]:
    """Attributes that no longer fit the tensors, for every submodule: {path: {attribute: value}}."""
    found: dict[str, Edits] = {}
    for path, submodule in submodules(module):
        kind: Any = type(submodule)
        for fix in _fixes(kind):
            changed = {k: v for k, v in fix(submodule).items() if _plain(getattr(submodule, k, v)) != v}
            if changed:
                found.setdefault(path, {}).update(changed)
    return found
