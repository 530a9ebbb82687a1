"""Cut a copy of a model: sliced tensors, fixed attributes, and the journal of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.arrays import Bools, Ints
from prunecli.checkpoint.journal import Journal, Kept
from prunecli.graph.attention import allow_fewer_heads
from prunecli.graph.channels import Channels, holders
from prunecli.graph.copying import copied, like
from prunecli.graph.garbage import uncollected
from prunecli.graph.shapes import sized
from prunecli.graph.tensors import named_tensors, submodules
from prunecli.surgery.fix import Edits, edits, head_edits
from prunecli.surgery.select import PRODUCTS, selecting

_BLOCK = 2**17  # numbers that the cache of a core holds


@uncollected()
def cut(
    module: nn.Module,
    channels: Channels,
    removed: Bools,
    *,
    replace: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, Journal]:
    """Return a smaller copy of `module` without the `removed` channels, and the journal of the cut.

    Args:
        module: stays as it is.
        channels: from `trace(module, ...)`.
        removed: (channels,) what goes.
        replace: tensors to use in place of the module's own, in the shapes before the cut; a name that the
            module does not have yet (a new bias) is added.
    """
    replace = _same_weights(module, channels, removed) | dict(replace or {})
    kept = _kept_places(channels, removed)
    memo: dict[int, Any] = {}
    for name, tensor in named_tensors(module):
        memo[id(tensor)] = like(tensor, sliced(replace.pop(name, tensor), name, kept))
    smaller = copied(module, memo)
    for name, added in replace.items():
        owner, _, attribute = name.rpartition(".")
        rows = kept.get((f"{owner}.weight", 0), np.arange(len(added)))  # a new bias follows the rows of its weight
        bias = nn.Parameter(added[torch.from_numpy(rows)])
        smaller.get_submodule(owner).register_parameter(attribute, bias)
    return smaller, Journal(_as_tuples(kept), _fit(smaller, channels, removed))


def outline(module: nn.Module, shapes: Mapping[str, Sequence[int]], channels: Channels, removed: Bools) -> nn.Module:
    """The copy that `cut` makes, but on meta: of its tensors only the shapes count.

    Args:
        module: stays as it is.
        shapes: of each parameter and buffer after the cut.
        channels: from `trace(module, ...)`.
        removed: (channels,) what goes.
    """
    smaller = copied(
        module, {id(tensor): like(tensor, sized(tensor, shapes[n])) for n, tensor in named_tensors(module)}
    )
    _fit(smaller, channels, removed)
    return smaller


def _fit(smaller: nn.Module, channels: Channels, removed: Bools) -> dict[str, Edits]:
    """Make attributes of a copy follow its tensors; returns what changed."""
    attributes = edits(smaller)
    for follow in (_told_sizes, _pad_counts, _head_sizes):
        for path, values in follow(smaller, channels, removed).items():
            attributes.setdefault(path, {}).update(values)
    set_attributes(smaller, attributes)
    return attributes


def sliced(tensor: Tensor, name: str, kept: Mapping[tuple[str, int], tuple[int, ...] | Ints]) -> Tensor:
    """The kept part of a tensor in storage of its own; on meta only its shape counts."""
    if tensor.is_meta:
        places = [(kept.get((name, dim)), size) for dim, size in enumerate(tensor.shape)]
        return sized(tensor, [size if stay is None else len(stay) for stay, size in places])
    dims = [dim for dim in range(tensor.ndim) if (name, dim) in kept]
    return _selected(tensor.detach(), {dim: torch.as_tensor(kept[name, dim]).to(tensor.device) for dim in dims})


def _selected(tensor: Tensor, where: Mapping[int, Tensor]) -> Tensor:
    """Positions along dims, which rise; of a large tensor some rows at a time: what lies between stays in the cache."""
    if not where:
        return tensor.clone()
    if len(where) == 1 or 0 not in where or tensor.numel() <= _BLOCK:
        for dim, places in where.items():
            tensor = tensor.index_select(dim, places)
        return tensor
    (_, rows), *between, (last, columns) = where.items()
    found = tensor.new_empty([len(where[dim]) if dim in where else size for dim, size in enumerate(tensor.shape)])
    count = max(1, _BLOCK * len(tensor) // tensor.numel())
    for block, part in zip(rows.split(count), found.split(count), strict=True):
        torch.index_select(_selected(tensor, {0: block, **dict(between)}), last, columns, out=part)
    return found


def _same_weights(module: nn.Module, channels: Channels, removed: Bools) -> dict[str, Tensor]:
    """Directions without what goes inside, and magnitudes that leave the rest of such a weight as it is.

    ``g' = g |v'| / |v|`` (Salimans & Kingma 2016, arXiv 1602.07868, eq. 2). A filter that has nothing left is zero.
    """
    found, tensors = {}, dict(named_tensors(module)) if channels.normed else {}
    for normed in channels.normed:
        slots = [s for s in channels.slots if s.name == normed.direction and s.dim != normed.dim]
        slots = [slot for slot in slots if removed[slot.channels].any()]
        if not slots:
            continue
        v, g = tensors[normed.direction].detach(), tensors[normed.magnitude].detach()
        less = v.clone()
        for slot in slots:
            less.index_fill_(slot.dim, torch.from_numpy(removed[slot.channels].nonzero()[0]).to(v.device), 0)
        inside = [dim for dim in range(v.ndim) if dim != normed.dim]
        before, after = (torch.linalg.vector_norm(t, dim=inside, keepdim=True) for t in (v, less))
        found[normed.magnitude] = g * (after / before).reshape(g.shape)
        found[normed.direction] = torch.where(after == 0, 1.0, less)  # a direction has a length
    return found


def _told_sizes(module: nn.Module, channels: Channels, removed: Bools) -> dict[str, Edits]:
    """New sizes for the modules that hold what a view or a split is told."""
    changed: dict[str, Edits] = {}
    stays, owner_of = ~removed, cache(module.get_submodule)
    for told in channels.told:
        pairs = zip(told.sizes, told.ids, strict=True)
        after = [n if ids is None or n < 0 else int(np.count_nonzero(stays[channels.of(ids)])) for n, ids in pairs]
        if tuple(after) == told.sizes:
            continue
        for path, name, place in holders(owner_of(told.module), told):
            if after[place] != [*told.sizes][place]:
                changed.setdefault(path, {})[name] = after[place]
    return changed


def _pad_counts(module: nn.Module, channels: Channels, removed: Bools) -> dict[str, Edits]:
    """New counts for the modules that pad channels and say how many."""
    changed: dict[str, Edits] = {}
    for pad in channels.pads:
        owner = module.get_submodule(pad.module)
        counts = [int((~removed[channels.of(ids)]).sum()) for ids in (pad.before, pad.after)]
        if getattr(owner, "channel_pads", counts) != counts:
            changed[pad.module] = {"channel_pads": counts}
    return changed


def _head_sizes(module: nn.Module, channels: Channels, removed: Bools) -> dict[str, Edits]:
    """New sizes for the modules that split channels into heads."""
    changed: dict[str, Edits] = {}
    for split in channels.splits:
        heads = {row.tobytes(): row for row in channels.of(split.ids)}  # a batch repeats them
        kept = ~removed[np.stack(list(heads.values()))]
        if not kept.all():
            left = kept.any(axis=1)
            after = int(left.sum()), int(kept[left].sum(axis=1).max(initial=0))
            changed.setdefault(split.module, {}).update(
                head_edits(module.get_submodule(split.module), (kept.shape[0], kept.shape[1]), after)
            )
    return changed


def set_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write journalled attributes into a module; attention that has fewer heads now gets a class that allows it.

    A tuple, which a file holds as a list, is a tuple again.
    """
    parts = dict(submodules(module))
    for path, values in attributes.items():
        owner = parts[path] if path in parts else module.get_submodule(path)  # a shared one has further paths
        for attribute, value in values.items():
            was_tuple = isinstance(getattr(owner, attribute, None), tuple)
            setattr(owner, attribute, tuple(value) if was_tuple else value)
    allow_fewer_heads(parts.values())


def _kept_places(channels: Channels, removed: Bools) -> dict[tuple[str, int], Ints]:
    """For every tensor dim that loses a position: the indices that stay, in order; dims of the same channels share."""
    stays, found, known = ~removed, {}, dict[bytes, Ints]()
    for slot in channels.slots:
        row = slot.channels.tobytes()
        if row not in known:
            known[row] = stays[slot.channels].nonzero()[0]
        if len(known[row]) < len(slot.channels):
            found[slot.name, slot.dim] = known[row]
    return found


def _as_tuples(kept: Mapping[tuple[str, int], Ints]) -> Kept:
    """For the journal; arrays that are one stay one."""
    distinct = {id(places): places for places in kept.values()}
    indices = {number: tuple(places.tolist()) for number, places in distinct.items()}
    return {place: indices[id(places)] for place, places in kept.items()}


def masked(module: nn.Module, channels: Channels, removed: Bools) -> nn.Module:
    """A full-size copy of `module` in which the removed channels are not read: the oracle of every cut.

    Zeroing the readers' weights is exact whatever batch norm, bias or activation lies between. Where two activations
    are multiplied (attention scores), the product leaves the channels out, or else their writers are zeroed. Sums leave
    them out too, and statistics are taken over those that stay.
    """
    twin = copied(module)
    tensors = dict(named_tensors(twin))
    parameters = [name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)]
    of_inputs = channels.tape.of_inputs()
    for name, tensor in _same_weights(module, channels, removed).items():
        tensors[name].data.copy_(tensor)
    weights = {normed.weight: normed.direction for normed in channels.normed}
    magnitudes = {(normed.direction, normed.dim): normed.magnitude for normed in channels.normed}
    ignored: dict[str, set[int]] = {}  # channels that a tensor must not pass on
    products = []
    for read in channels.reads:
        reader = channels.parameter_behind(read.b) or weights.get(read.b, "")
        if not reader and channels.tape.ops[read.op].name in PRODUCTS:
            products.append(read)
            continue
        label = read.b_label if reader else read.a_label
        hit = channels.of(label.ids.reshape(-1))
        gone = set(hit[removed[hit]].tolist())
        writers = tensors if read.b in of_inputs else parameters  # a buffer may be what a weight is divided by
        for name in [reader] if reader else writers:
            ignored.setdefault(name, set()).update(gone)
    for slot in channels.slots:
        rows = [i for i, channel in enumerate(slot.channels.tolist()) if channel in ignored.get(slot.name, ())]
        if rows:
            zeroed = magnitudes.get((slot.name, slot.dim), slot.name)  # a direction has a length
            tensors[zeroed].data.index_fill_(slot.dim, torch.tensor(rows), 0)
    return selecting(twin, channels, removed, products)
