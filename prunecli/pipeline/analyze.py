"""Where the cost and the zeros are."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from prunecli.arrays import Ints
from prunecli.checkpoint.read import read
from prunecli.cost.count import flops as count_flops
from prunecli.cost.measure import flops_by_op
from prunecli.errors import ArchError, InputError
from prunecli.facts import AnalyzeFacts, GroupFacts, LayerFacts, WhyFacts
from prunecli.graph.channels import Channels, Group
from prunecli.graph.tape import ForwardError
from prunecli.inputs import shown, to_json
from prunecli.model import DEFAULT, Model, Opening, Source, from_checkpoint, is_architecture, open_model
from prunecli.pipeline.evaluation import data_for, flops_taken, known_accuracy
from prunecli.pipeline.figures import count, path_bytes, stored_bytes
from prunecli.surgery.expand import collapsed
from prunecli.surgery.probe import survey


def analyze(
    source: Source, opening: Opening = DEFAULT, *, data: str | None = None, why: str | None = None
) -> AnalyzeFacts:
    """Facts about a model.

    A checkpoint whose architecture is unknown is still counted; only FLOPs, groups and accuracy need one.

    Args:
        source: MODEL as on the command line, or a module, which stays as it is.
        opening: how to open it.
        data: measure accuracy on its test images.
        why: a layer whose channel groups are explained.

    Raises:
        InputError: the model, the data or the layer cannot be used.
    """
    if isinstance(source, nn.Module) or is_architecture(source):
        return _of_model(open_model(source, opening), data, why)
    checkpoint = read(source, key=opening.key, trust=opening.trust)
    try:
        model = from_checkpoint(checkpoint, opening)
    except ArchError as error:
        if opening.arch or data or why or checkpoint.container is not None:
            raise
        note = f"{error.problem}; without one there are no FLOPs, channel groups or accuracy. {error.hint}"
        return _of_state(checkpoint.path, checkpoint.format, checkpoint.state, [*checkpoint.remarks, note])
    return _of_model(model, data, why)


def _of_state(path: Path, form: str, state: dict[str, Tensor], notes: list[str]) -> AnalyzeFacts:
    """Facts of bare tensors: those of floats or complex numbers that are no running statistics count as parameters."""
    numbers = {n: t for n, t in state.items() if t.is_floating_point() or t.is_complex()}
    parameters = {n: t for n, t in numbers.items() if not n.endswith(("running_mean", "running_var"))}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in parameters.items():
        layers.setdefault(name.rpartition(".")[0], {})[name] = tensor
    facts = [_layer(owner, "", tensors, None) for owner, tensors in layers.items()]
    params, nonzero, sparsity = count(parameters)
    return AnalyzeFacts(
        model=str(path), format=form, arch=None, input=None, params=params, nonzero=nonzero, sparsity=sparsity,
        flops=None, bytes=path_bytes(path), accuracy=None, groups=[], layers=facts, notes=notes,
    )  # fmt: skip


def _of_model(model: Model, data: str | None, why: str | None) -> AnalyzeFacts:
    channels, groups, notes = None, [], list(model.notes)
    images = None if data is None else data_for(model, data)
    try:
        channels = survey(model.module, model.example)
        groups = _groups(model, channels)
    except ForwardError as error:
        notes.append(f"{error.problem}; input {shown(model.inputs)}")
    params, nonzero, sparsity = count(dict(model.module.named_parameters()))
    flops = None if channels is None else flops_by_op(model.module, model.example)
    if model.journal.gates:
        notes.append(f"{len(model.journal.gates)} layers are gated: FLOPs are those with every channel open")
    return AnalyzeFacts(
        model=model.source,
        format=model.format,
        arch=None if model.arch is None else str(model.arch),
        input=to_json(model.inputs),
        params=params,
        nonzero=nonzero,
        sparsity=sparsity,
        flops=None if flops is None else sum(flops.values()),
        bytes=stored_bytes(model),
        accuracy=known_accuracy(model.module, images),
        groups=groups,
        layers=_layers(model.module, channels),
        flops_by_op=flops or {},
        unknown_ops={} if channels is None else channels.unknown,
        why=[] if why is None else _explain(model.module, channels, why),
        notes=notes,
        dynamic=flops_taken(model, images),
    )


def _groups(model: Model, channels: Channels) -> list[GroupFacts]:
    """Those that can be pruned; where layers fill in constants, of the network that computes all of its channels."""
    if model.journal.expansions:
        wide, _ = collapsed(model.module, model.journal)
        channels = survey(wide, model.example)
    return [group_facts(channels, group) for group in channels.groups]


def _layers(module: nn.Module, channels: Channels | None) -> list[LayerFacts]:
    flops = {} if channels is None else count_flops(channels).by_module(np.ones(channels.count, dtype=np.bool_))
    facts, seen = [], set()
    for name, part in module.named_modules():
        own = {n: p for n, p in part.named_parameters(name, recurse=False) if id(p) not in seen}
        seen |= {id(p) for p in own.values()}
        if own:
            facts.append(_layer(name, type(part).__name__, own, None if channels is None else flops.get(name, 0), part))
    return facts


def _layer(
    name: str, kind: str, tensors: dict[str, Tensor], flops: int | None, module: nn.Module | None = None
) -> LayerFacts:
    largest = max(tensors.values(), key=lambda t: (t.ndim, t.numel()))
    params, nonzero, _ = count(tensors)
    return LayerFacts(name, kind, list(largest.shape), params, nonzero, flops, _dead(largest, module))


def _dead(weight: Tensor, module: nn.Module | None) -> int:
    """Output channels whose every weight is zero."""
    if weight.ndim < 2:
        return 0
    if getattr(module, "transposed", False):
        weight = weight.transpose(0, 1)
    return int((weight.detach().flatten(1) == 0).all(1).sum())


def group_facts(channels: Channels, group: Group) -> GroupFacts:
    """A group as it is reported."""
    member = group.channels[0]
    carried = 0
    tape = channels.tape
    for number in group.slots:
        slot = channels.slots[number]
        shape = tape.shapes[tape.params[slot.name]]
        carried += int((slot.channels == member).sum()) * int(np.prod(shape)) // shape[slot.dim]
    return GroupFacts(group.name, len(group.channels), group.frozen, channels.member_names(group), carried)


def _explain(module: nn.Module, channels: Channels | None, layer: str) -> list[WhyFacts]:
    names = [name for name, _ in module.named_modules() if name]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, 3, 0.4)
        raise InputError(f"no layer {layer!r}", hint=f"nearest: {', '.join(near or names[:5])}")
    if channels is None:
        raise InputError(f"cannot explain {layer!r}: the model does not run", hint="check --input")
    found = []
    for group in channels.groups:
        own = [channels.slots[s] for s in group.slots if channels.slots[s].name.startswith(f"{layer}.")]
        for role, dims in (("writes", (0,)), ("reads", (1,))):
            if any(slot.dim in dims for slot in own):
                found.append(_why(channels, group, role))
    return found


def _why(channels: Channels, group: Group, role: str) -> WhyFacts:
    members = set(group.channels.tolist())
    ends = [(read.op, read.a_label) for read in channels.reads] + [(end.op, end.label) for end in channels.sums]
    readers = [channels.tape.ops[op].where for op, label in ends if members & _of(channels, label.ids)]
    ties = []
    for op in channels.tape.ops:
        labelled = [
            ref for ref in op.refs if any(members & _of(channels, x.ids) for x in channels.labels.get(ref.index, ()))
        ]
        activations = [ref for ref in labelled if ref.index not in channels.tape.params.values()]
        if len(activations) > 1:
            ties.append(op.where)
    return WhyFacts(role, group_facts(channels, group), ties, list(dict.fromkeys(readers)))


def _of(channels: Channels, ids: Ints) -> set[int]:
    return set(channels.of(ids.reshape(-1)).tolist())
