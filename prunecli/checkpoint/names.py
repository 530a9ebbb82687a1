"""From whatever a file holds to plain parameter names: nesting, prefixes, masks and parametrizations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import CheckpointError, summary

State = dict[str, Tensor]

# Where training scripts put their weights, best first; averaged weights come after the trained ones.
_NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "_model.")


def find_weights(payload: Any, key: str | None = None) -> tuple[Any, State, list[str]]:
    """The module or state dict inside a loaded file, its tensors, and notes about the choice.

    Args:
        payload: what the file held.
        key: force one entry (dots go deeper).

    Raises:
        CheckpointError: nothing in it looks like weights, or `key` is not there.
    """
    if key is not None:
        return *_forced(payload, key), [f"weights from {key!r}"]
    own = _as_state(payload)
    if own is not None:
        return payload, own, []
    found = dict(_candidates(payload))
    if not found:
        kind = type(payload).__name__
        inside = ", ".join(map(str, list(payload)[:8])) if isinstance(payload, Mapping) else kind
        raise CheckpointError(f"no weights found in the file (it holds: {inside})", hint="name the entry with --key")
    chosen = next(iter(found))
    notes = [f"weights from {chosen!r}"]
    if len(found) > 1:
        others = ", ".join(repr(k) for k in found if k != chosen)
        notes = [f"weights from {chosen!r}; the file also holds {others} (choose with --key)"]
    return *found[chosen], notes


def _forced(payload: Any, key: str) -> tuple[Any, State]:
    value = payload
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            inside = ", ".join(map(str, list(value)[:8])) if isinstance(value, Mapping) else type(value).__name__
            raise CheckpointError(f"the file has no entry {key!r}", hint=f"it holds: {inside}")
        value = value[part]
    state = _as_state(value)
    if state is None:
        raise CheckpointError(f"the entry {key!r} holds no weights")
    return value, state


def _candidates(payload: Any) -> Iterator[tuple[str, tuple[Any, State]]]:
    if not isinstance(payload, Mapping):
        return
    order = [k for k in (*_NESTS, *_AVERAGED) if k in payload]
    order += [k for k in payload if k not in order and "optim" not in str(k).lower()]
    for key in order:
        state = _as_state(payload[key])
        if state is not None:
            yield key, (payload[key], state)
            continue
        for deeper, inner in _candidates(payload[key]):
            yield f"{key}.{deeper}", inner


def _as_state(value: Any) -> State | None:
    """`value` as a state dict: a module, or a mapping of names to tensors (other entries are left out)."""
    if isinstance(value, nn.Module):
        return dict(value.state_dict())
    if not isinstance(value, Mapping) or not value:
        return None
    tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors or (len(tensors) < len(value) and not any("." in k for k in tensors)):
        return None
    return {k: _dense(v.detach(), k) for k, v in tensors.items()}


_PACKED = {getattr(torch, "float4_e2m1fn_x2", None)}  # torch only stores it


def _dense(tensor: Tensor, name: str) -> Tensor:
    """The tensor as layers take it: not sparse, in storage.

    Raises:
        CheckpointError: it has no numbers, or too many.
    """
    if tensor.dtype in _PACKED:
        raise CheckpointError(
            f"{name} packs two numbers of 4 bits into each byte", hint="convert it to floats of 16 bits or more first"
        )
    if tensor.is_meta:
        raise CheckpointError(f"{name} has a shape and no numbers: it was saved from the meta device")
    if tensor.layout is torch.strided and not tensor.is_nested:
        return tensor.resolve_neg().resolve_conj()
    try:
        return tensor.to_dense()
    except (RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{name} is no dense tensor, and cannot be made one: {summary(error)}") from error


def telling(name: str) -> bool:
    """Whether a tensor must be there: counters of batch norm are missing in old files."""
    return not name.endswith("num_batches_tracked")


def spellings(state: State) -> Iterator[tuple[State, list[str]]]:
    """The names of a file as they may be meant, each with notes: as they are written, then without one wrapper's
    prefix after the other; the same with masks and parametrizations folded into their weights.

    The last are the plain names of `plain_names`.
    """
    folded, notes = fold_reparametrized(state)
    for start, said in [(state, []), (folded, notes)] if notes else [(state, [])]:
        yield start, said
        current, removed = start, ""
        while prefix := next((p for p in _PREFIXES if current and all(k.startswith(p) for k in current)), None):
            current = {k.removeprefix(prefix): v for k, v in current.items()}
            removed += prefix
            yield current, [*said, f"prefix {removed!r} taken off"]


def plain_names(state: State) -> tuple[State, list[str]]:
    """Fold masks and parametrizations into their weights, and take wrappers' prefixes off."""
    return list(spellings(state))[-1]


def _masked(weight: Tensor, mask: Tensor) -> Tensor | None:
    return weight * mask.to(weight.dtype) if weight.shape == mask.shape else None


def _weight_norm(magnitude: Tensor, direction: Tensor) -> Tensor | None:
    """``g v / |v|``, the norm over the dims along which g has one number; torch's own kernel trusts the shapes."""
    known = magnitude.shape if magnitude.ndim else (1,) * direction.ndim
    if len(known) != direction.ndim or any(g not in (1, v) for g, v in zip(known, direction.shape, strict=True)):
        return None
    if not (magnitude.is_floating_point() and direction.is_floating_point()):
        return None
    inside = [dim for dim, size in enumerate(known) if size == 1]
    norm = torch.linalg.vector_norm(direction, dim=inside, keepdim=True) if inside else direction.abs()
    return direction * (magnitude / norm)


# What others write for one weight: (suffixes of the parts, what they mean, how to compute the weight, if they fit).
_FOLDS: list[tuple[tuple[str, str], str, Callable[[Tensor, Tensor], Tensor | None]]] = [
    (("{0}_orig", "{0}_mask"), "masks of torch.nn.utils.prune", _masked),
    (("parametrizations.{0}.original", "parametrizations.{0}.0.mask"), "masks of torch.ao.pruning", _masked),
    (("parametrizations.{0}.original0", "parametrizations.{0}.original1"), "weight norm", _weight_norm),
    (("{0}_g", "{0}_v"), "weight norm", _weight_norm),
]


def fold_reparametrized(state: State) -> tuple[State, list[str]]:
    """Replace the parts of every masked or parametrized tensor by the tensor that the layer used."""
    folded = dict(state)
    counts: dict[str, int] = {}
    for suffixes, meaning, compute in _FOLDS:
        head, tail = suffixes[0].split("{0}")
        for key in [k for k in folded if k.endswith(tail) and head in k]:
            owner, _, rest = key.rpartition(head) if head else key.rpartition(".")
            attribute = rest.removesuffix(tail)
            base = owner if head else (f"{owner}." if owner else "")
            partner = base + suffixes[1].format(attribute)
            if not attribute or "." in attribute or partner not in folded:
                continue
            weight = compute(folded[key], folded[partner])
            if weight is not None:
                del folded[key], folded[partner]
                folded[base + attribute] = weight
                counts[meaning] = counts.get(meaning, 0) + 1
    return folded, [f"{count} tensors folded from {meaning}" for meaning, count in counts.items()]
