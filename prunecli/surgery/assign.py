"""Put the tensors of a file into a freshly built module, cut and rebuilt as the journal of the file says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import Journal
from prunecli.checkpoint.names import telling
from prunecli.errors import ArchError, CheckpointError
from prunecli.graph.copying import like
from prunecli.graph.tensors import EXTRA, dtype_name, in_rows, stored, weight_norms
from prunecli.surgery.apply import set_attributes, sliced
from prunecli.surgery.border import border
from prunecli.surgery.expand import narrowed
from prunecli.surgery.factors import factorise
from prunecli.surgery.fold import drop
from prunecli.surgery.gates import install


def assign(module: nn.Module, state: Mapping[str, Tensor], journal: Journal, what: str) -> None:
    """Put tensors into a freshly built module, whose shapes the journal has changed.

    Tied parameters stay tied. A bias that folding added is registered.
    Expanded layers and dropped batch norms are made as the journal says.

    Raises:
        ArchError: names or shapes do not fit.
    """
    _restructure(module, journal, what)
    own = stored(module)
    added = {n for n in state if n not in own and _may_add(module, n)}
    _insist_on_fit(module, own, added, state, journal, what)
    _check_attributes(module, journal, what)
    _fill(module, own, state)
    for name in added:
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner).register_parameter(attribute, nn.Parameter(state[name].clone()))
    for name, buffer in module.named_buffers():  # those that no file holds are cut here
        if name not in own:
            buffer.data = sliced(buffer.data, name, journal.kept)
    set_attributes(module, journal.attributes)


def _insist_on_fit(
    module: nn.Module,
    own: Mapping[str, Tensor],
    added: Collection[str],
    state: Mapping[str, Tensor],
    journal: Journal,
    what: str,
) -> None:
    """Every tensor of the model is there, in its shape after the cuts, and no other.

    Raises:
        ArchError: names, shapes or kinds of numbers do not fit.
        CheckpointError: the two parts of a weight norm do not fit each other.
    """
    missing = [n for n in own if n not in state and telling(n)]
    unexpected = [n for n in state if n not in own and n not in added and telling(n)]
    shapes = _expected(own, journal)
    wrong = [n for n in own if n in state and tuple(state[n].shape) != shapes[n]]
    if missing or unexpected or wrong:
        raise ArchError(_misfit(what, shapes, state, missing, unexpected, wrong), hint="check --arch")
    odd = [n for n, t in own.items() if isinstance(t, nn.Parameter) and n in state and _kind(t) != _kind(state[n])]
    if odd:
        found, wanted = (dtype_name(t.dtype) for t in (state[odd[0]], own[odd[0]]))
        raise ArchError(
            f"{what}: it holds {found} where the architecture has {wanted}: {', '.join(odd[:3])}",
            hint="a quantised checkpoint? convert it to floats of 16 bits or more first",
        )
    for magnitude, direction, dim in weight_norms(module):  # torch's kernel trusts that they fit
        fits = tuple(n if d == dim else 1 for d, n in enumerate(shapes[direction]))
        if shapes[magnitude] not in ((), fits):
            raise CheckpointError(f"{what}: the journal cuts {magnitude} and {direction} apart")


def _kind(tensor: Tensor) -> str:
    """Numbers that layers take in each other's place."""
    if tensor.is_floating_point():
        return "floats" if tensor.element_size() > 1 else "floats of 8 bits"  # few kernels take those
    return "complex numbers" if tensor.is_complex() else "integers"


def _fill(module: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """The tensors of the file in the place of the model's own; what was tied stays tied."""
    tied: dict[int, nn.Parameter | Tensor] = {}
    given: set[int] = set()  # storages that a tensor of the model has become
    for name, old in own.items():
        owner, _, attribute = name.rpartition(".")
        if id(old) not in tied:
            new = _own(state[name], given) if name in state else torch.zeros((), dtype=torch.long)
            tied[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        holder = module.get_submodule(owner)
        if attribute == EXTRA:
            holder.set_extra_state(tied[id(old)])
        else:
            setattr(holder, attribute, tied[id(old)])


def _own(tensor: Tensor, given: set[int]) -> Tensor:
    """The tensor itself where it alone fills its storage, so that a large file is in memory once; else a copy."""
    storage = tensor.untyped_storage()
    alone = storage.nbytes() == tensor.numel() * tensor.element_size() and storage.data_ptr() not in given
    given.add(storage.data_ptr())
    return tensor if alone and in_rows(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _restructure(module: nn.Module, journal: Journal, what: str) -> None:
    """Gates, factors, dropped batch norms, borders, expanded layers, before which the cut comes: they start from what
    it left.

    Raises:
        CheckpointError: the journal speaks of layers that are not there, or not of that width.
    """
    try:
        install(module, journal.gates)
        factorise(module, journal.ranks)
        drop(module, journal.folded)
        border(module, journal.bordered)
        for expansion in journal.expansions.values():
            _cut_layers(module, expansion.layers, journal)
        narrowed(module, dict(journal.expansions))
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{what}: the journal does not fit: {error}", hint="check --arch") from error


def _cut_layers(module: nn.Module, layers: Sequence[str], journal: Journal) -> None:
    """Slice the tensors of some layers as the journal says."""
    for path in layers:
        layer = module.get_submodule(path)
        for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            setattr(layer, name, like(tensor, sliced(tensor.detach(), f"{path}.{name}", journal.kept)))


def _check_attributes(module: nn.Module, journal: Journal, what: str) -> None:
    """A journal changes counts and nothing else, whatever the file says."""
    for path, values in journal.attributes.items():
        try:
            current = {name: getattr(module.get_submodule(path), name) for name in values}
        except AttributeError as error:
            raise ArchError(f"{what}: the journal names what is not there: {error}", hint="check --arch") from error
        for name, value in values.items():
            if not (_is_count(current[name]) and _is_count(value)):
                raise CheckpointError(f"{what}: the journal sets {path}.{name}, which is no count")


def _is_count(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return all(type(part) is int for part in parts)


def _may_add(module: nn.Module, name: str) -> bool:
    """A layer without a bias may have got one when constants were folded into it."""
    owner, _, attribute = name.rpartition(".")
    try:
        holder = module.get_submodule(owner)
    except AttributeError:
        return False
    return attribute == "bias" and isinstance(holder, nn.Linear | nn.modules.conv._ConvNd) and holder.bias is None


def _expected(own: Mapping[str, Tensor], journal: Journal) -> dict[str, tuple[int, ...]]:
    """Shapes after the journal's cuts; it names a shared tensor once."""
    first: dict[int, str] = {}
    shapes = {}
    expanded = {layer for expansion in journal.expansions.values() for layer in expansion.layers}
    for name, tensor in own.items():
        known = first.setdefault(id(tensor), name)
        cut = {} if name.rpartition(".")[0] in expanded else journal.kept  # those are cut already
        shapes[name] = tuple(len(cut.get((known, d), range(n))) for d, n in enumerate(tensor.shape))
    return shapes


def _misfit(what: str, shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], *lists: list[str]) -> str:
    missing, unexpected, wrong = lists
    lines = [f"{what} does not fit:"]
    if missing:
        lines.append(f"  {len(missing)} tensors are missing: {', '.join(missing[:3])}")
    if unexpected:
        lines.append(f"  {len(unexpected)} tensors have no place: {', '.join(unexpected[:3])}")
    for name in wrong[:3]:
        lines.append(f"  {name} is {tuple(state[name].shape)}, the architecture has {shapes[name]}")
    return "\n".join(lines)
