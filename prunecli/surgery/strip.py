"""Strip: remove what provably does not matter. The outputs stay the same, to rounding.

A channel may go when its values are zero wherever they are summed up, and each of its reads is harmless: its values are
zero there, the weights that read it are zero, or its value is a constant c that the reader can take over:

- a reader without padding adds  c * sum(W[:, channel])  to its bias;
- a convolution with zero padding cannot (the border sees padding zeros, not c), but gets a bias for each tap of its
  kernel (see `border`) where that is wished;
- any other reader keeps one of the constant channels, the largest |c_k|, and the others' columns are added to its
  column, scaled by c_i / c_k. Padding then treats the sum as it treated the parts, at every input size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunecli.arrays import Bools, Floats, Ints
from prunecli.checkpoint.journal import TAPS, Journal
from prunecli.graph.channels import TRANSPOSES, Channels, trace
from prunecli.graph.labels import Label, Read
from prunecli.graph.tape import Example
from prunecli.graph.tensors import named_tensors
from prunecli.surgery.apply import cut
from prunecli.surgery.border import Bordered, border, may_border
from prunecli.surgery.constants import Fields, propagate
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import Restrict, as_written, misfits, settle, with_images, with_whole_heads

Replace = dict[str, Tensor]  # tensors in place of the model's own


@dataclass(frozen=True)
class Stripped:
    """What a strip did: the smaller model, its journal, and how many channels went."""

    module: nn.Module
    journal: Journal
    removed: int


@dataclass
class _Take:
    """One read and what its reader could take over."""

    read: Read
    channel: Ints  # (positions,) channel of each position along the read dim
    constant: Floats  # (positions,) NaN where not constant, 0 where the read does not matter
    weight: str  # name of the reader's weight, "" where it is no plain parameter
    dim: int  # along which the weight reads
    into: Literal["bias", "border", "column"]  # what takes constants over; the last is that of a channel that is kept
    keeper: int = field(default=-1)  # position whose column takes the others, -1 for none


def strip(
    module: nn.Module,
    example: Example,
    restrict: Restrict = lambda channels: channels,
    *,
    borders: bool = False,
) -> Stripped:
    """Remove all channels that do not matter, round after round until none is left.

    Args:
        module: stays as it is; eval-mode behaviour is what is kept.
        example: one input, for the tape only; the result is exact at every input size.
        restrict: freezes groups that must stay whole.
        borders: whether padded convolutions get a border instead of a constant channel.
    """
    journal, total = Journal(), 0
    while (found := _dead(module, example, restrict, borders)) is not None:
        channels, removed, tensors = found
        module, done = cut(module, channels, removed, replace=tensors)
        new = tuple(name.removesuffix(f".{TAPS}") for name in tensors if name.endswith(f".{TAPS}"))
        border(module, new)
        journal, total = journal.then(replace(done, bordered=new)), total + int(removed.sum())
    return Stripped(module, journal, total)


def _dead(
    module: nn.Module, example: Example, restrict: Restrict, borders: bool
) -> tuple[Channels, Bools, Replace] | None:
    """Channels that do not matter, None where there are none.

    Those of narrower heads, or else heads as a whole, images. Sizes that attributes hold are followed before anything
    goes: after a cut another width may be as large by chance.
    """
    views, best = as_written(module), None
    while True:
        traced = channels = restrict(trace(module, example, views))
        removed, tensors = _plan(module, channels, borders)
        while removed.any() and (settled := settle(module, example, channels, removed)) is not channels:
            channels = settled
            removed, tensors = _plan(module, channels, borders)
        if removed.sum() > (0 if best is None else best[1].sum()):
            best = channels, removed, tensors
        numbered = views.numbered | misfits(module, channels, channels.frozen & ~traced.frozen)
        wider = replace(views, numbered=numbered)
        if best is None:
            wider = with_whole_heads(module, with_images(wider, channels), channels, all_of_them=True)
        if wider == views:
            return best
        views = wider


def _plan(module: nn.Module, channels: Channels, borders: bool) -> tuple[Bools, Replace]:
    fields = propagate(channels.tape, dict(named_tensors(module)))
    takes = [_take(read, module, channels, fields, borders) for read in channels.reads]
    removed = np.zeros(channels.count, dtype=np.bool_)
    removed[[c for group in channels.groups if not group.frozen for c in group.channels.tolist()]] = True
    for take in takes:
        removed[take.channel[np.isnan(take.constant)]] = False
    for end in channels.sums:
        values = _along(fields.get(channels.tape.ops[end.op].args[end.argument].index), end.label)
        removed[channels.of(end.label.rows())[values != 0]] = False
    for take in takes:
        _settle_constants(take, removed)
    removed = repair(channels, removed)
    return removed, _fold(module, takes, removed)


def _take(read: Read, module: nn.Module, channels: Channels, fields: Fields, borders: bool) -> _Take:
    """Constants along the read dim, zero where the product is zero anyway."""
    values, weights = _along(fields.get(read.a), read.a_label), _along_zero(fields.get(read.b), read)
    channel = channels.of(read.a_label.rows().reshape(-1))
    if read.b_label.rows().size > len(channel):
        channel = channels.of(read.b_label.rows().reshape(-1))
    constant = _laid_out(values, len(channel), np.nan)
    constant[_laid_out(weights, len(channel), False)] = 0.0
    name, dim = _reader_weight(read, channels)
    take = _Take(read, channel, constant, name, dim, _takes_over(read, channels, module, name, dim, borders))
    repeated = len(np.unique(channel)) < len(channel)
    if not name or read.groups > 1 or (repeated and take.into != "bias"):
        constant[constant != 0] = np.nan  # nobody can take this constant over
    return take


def _laid_out(known: NDArray[Any], size: int, unknown: float) -> NDArray[Any]:
    """(size,) flat; unknown where values and weights run over their channels in different ways."""
    if known.size in (1, size):
        return np.broadcast_to(known.reshape(-1), (size,)).copy()
    if known.shape[-1] == size and (known == known[:1]).all():  # rows that are alike
        row: NDArray[Any] = known[0].copy()
        return row
    return np.full(size, unknown, dtype=known.dtype)


def _along(field: Tensor | None, label: Label) -> Floats:
    """The constant at each labelled position, NaN where there is none."""
    size = label.rows().shape
    if field is None:
        return np.full(size, np.nan)
    for dim in range(field.ndim):
        if label.ids.shape[dim] == 1 and field.shape[dim] > 1:
            first = field.narrow(dim, 0, 1)
            same = (field == first).all(dim, keepdim=True)
            field = torch.where(same, first, torch.nan)
    rows: Floats = field.expand(label.ids.shape).movedim(label.axis, -1).reshape(size).numpy()
    return rows


def _along_zero(field: Tensor | None, read: Read) -> Bools:
    """Where all weights that read a position are zero, flat over the positions of the values."""
    if field is None:
        return np.zeros(1, dtype=np.bool_)
    zero = field == 0
    if read.groups > 1 and read.b_label.axis == 1:
        # the field of a computed weight has extent 1 where it does not vary
        zero = zero.expand(max(read.groups, len(zero)), read.b_label.ids.shape[1], *zero.shape[2:])
        per_group = zero.reshape(read.groups, -1, *zero.shape[1:]).flatten(3).all(3).all(1)
        return np.asarray(per_group.reshape(-1).numpy())
    label = read.b_label
    for dim in range(zero.ndim):
        if label.ids.shape[dim] == 1:
            zero = zero.all(dim, keepdim=True)
    return np.asarray(zero.expand(label.ids.shape).movedim(label.axis, -1).reshape(-1).numpy())


def _reader_weight(read: Read, channels: Channels) -> tuple[str, int]:
    """The parameter that reads, where it is one and serves this read alone, and the dim along which it does."""
    name, dim = channels.reader(read)
    uses = [
        op.index
        for op in channels.tape.ops
        if op.name not in TRANSPOSES and any(channels.parameter_behind(ref.index) == name for ref in op.refs)
    ]
    reads = [other.op for other in channels.reads if channels.parameter_behind(other.b) == name]  # bilinear: two
    return (name, dim) if uses == reads == [read.op] else ("", dim)


def _takes_over(
    read: Read, channels: Channels, module: nn.Module, weight: str, dim: int, borders: bool
) -> Literal["bias", "border", "column"]:
    """A module that sees no padding and adds a bias of its own, a padded convolution, or anything else."""
    path = weight.rpartition(".")[0]
    op, owner = channels.tape.ops[read.op], module.get_submodule(path) if weight else None
    biased = any(channels.parameter_behind(ref.index) == f"{path}.bias" for ref in op.refs)
    if dim != 1 or op.module != path or not (biased or _adds_bias(owner)):
        return "column"
    if isinstance(owner, nn.Linear):
        return "bias"
    plain_conv = isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d) and owner.padding_mode == "zeros"
    if not plain_conv or op.name != "aten.convolution":
        return "column"
    if not any(op.args[4]):
        return "bias"
    return "border" if borders and may_border(owner) else "column"


def _adds_bias(owner: nn.Module | None) -> bool:
    """Whether it is a forward of torch's own, or with a border, which adds a bias where there is one."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    own = any(type(owner).forward is kind.forward for kind in kinds if isinstance(owner, kind))
    return own or isinstance(owner, Bordered)


def _settle_constants(take: _Take, removed: Bools) -> None:
    """Keep one constant channel, the largest, of a read that neither bias nor border relieves of those that go."""
    going = removed[take.channel] & (np.nan_to_num(take.constant) != 0)
    if take.into != "column" or not going.any():
        return
    sizes = np.abs(np.nan_to_num(take.constant))
    staying = np.where(removed[take.channel], 0.0, sizes)
    take.keeper = int(np.argmax(staying if staying.max() >= 0.1 * sizes.max() else sizes))
    removed[take.channel[take.keeper]] = False


def _fold(module: nn.Module, takes: list[_Take], removed: Bools) -> Replace:
    """New weights and biases that take over the constants of the removed channels."""
    tensors, found = dict(named_tensors(module)), {}
    for take in takes:
        going = removed[take.channel] & (take.constant != 0)
        if not going.any():
            continue
        weight = tensors[take.weight]
        wide = weight.detach().double()
        constants = torch.from_numpy(np.where(going, take.constant, 0.0))
        if take.into == "column":
            name, new = take.weight, _onto_keeper(take, wide, constants)
        else:
            taps = torch.tensordot(wide, constants, ([1], [0]))  # (out, *kernel)
            whole = take.into == "bias"
            name = take.weight.removesuffix("weight") + ("bias" if whole else TAPS)
            new = taps.reshape(len(taps), -1).sum(1) if whole else taps.unsqueeze(1)
            new = new + tensors[name].detach() if name in tensors else new
        found[name] = new.to(weight.dtype)
    return found


def _onto_keeper(take: _Take, wide: Tensor, constants: Tensor) -> Tensor:
    """The weight whose column of the kept constant stands for those that go as well."""
    shape = [-1 if dim == take.dim else 1 for dim in range(wide.ndim)]
    share = (constants / take.constant[take.keeper]).reshape(shape)
    wide = wide.clone()
    wide.narrow(take.dim, take.keeper, 1).add_((wide * share).sum(take.dim, keepdim=True))
    return wide
