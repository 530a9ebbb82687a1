"""Gates: layers that compute, for every image, only the channels that a small head asks for.

A gated layer is a convolution with its batch norm and a linear head that looks at the mean of what the convolution
reads. In a batch the other channels are computed and set to zero; for a single image they are not computed at all,
and layers that read them skip what is zero. Both give the same up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunecli.checkpoint.journal import Gate
from prunecli.graph.tape import Example, Op, Tape, is_observed, record

# Activations that leave zero at zero: a channel that is zero before them is zero behind them.
ACTIVATIONS = frozenset(
    f"aten.{name}{end}"
    for name in ("relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "leaky_relu", "elu", "mish", "tanh")
    for end in ("", "_")
)
# What else a zero channel passes.
_PASSES = ACTIVATIONS | {
    "aten.max_pool2d_with_indices", "aten.avg_pool2d", "aten._adaptive_avg_pool2d", "aten.mean", "aten.clone",
    "aten.dropout", "aten.detach", "aten.alias", "aten.mul", "aten.mul_",
}  # fmt: skip


# Multiply-adds that take as long as copying a number that lies in a row with others that are copied, as picking one out
# of its row, and as starting the kernels for it (2 CPU cores, `benchmarks/skipping.py`).
COPY, PICK, START = 15, 60, 12e6


class Gated(nn.Module):
    """A convolution, its batch norm, and the head that says which of its channels an image needs.

    Attributes:
        conv, norm: as they were; norm may be an identity.
        head: from the mean of every input channel to one logit for each output channel.
        watched: whether forward remembers what it saw, for a method that trains heads.
        oracle: takes the ungated output and gives the mask in place of the head.
        shift: of all logits, while a method that trains heads looks for the number that meets its budget; a tensor, so
            that a compiled model need not be compiled again.
        seen: (logits, output before the mask) of the last forward pass that was watched.
        mask: (N, C) of that pass.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = conv, norm, head
        self.watched = False
        self.joint = False
        self.oracle: Any = None
        self.shift: Tensor | None = None
        self.seen: tuple[Tensor, Tensor] | None = None
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H', W')."""
        logits = self.head((x if self.joint else x.detach()).mean((2, 3)))
        if not self.watched and _alone(self, x):
            mask = logits[0] > 0
            if _is_large(self.conv, x):
                rows = mask.nonzero().flatten()
                if self._pays(x, len(rows)):
                    return self._computed(x, rows)
            return self._silenced(x, mask)
        whole: Tensor = self.norm(self.conv(x))
        mask = self._asked(logits.detach()).to(whole.dtype) if self.oracle is None else self.oracle(whole.detach())
        if self.watched:
            self.seen, self.mask = (logits, whole), mask
        masked: Tensor = whole * mask[:, :, None, None]
        return masked

    def _asked(self, logits: Tensor) -> Tensor:
        return logits > 0 if self.shift is None else logits > -self.shift

    def _silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        """The mask, (C,), of one image as a part of its batch norm."""
        output: Tensor = self.conv(x)
        return (
            output * mask[:, None, None] if isinstance(self.norm, nn.Identity) else _scaled_by(self.norm, output, mask)
        )

    def _pays(self, x: Tensor, rows: int) -> bool:
        """Whether it is faster to compute so many channels and put them in their places."""
        conv: Any = self.conv
        fan_in, places = conv.weight[0].numel(), _places(conv, x)
        copied = rows * fan_in + conv.out_channels * places
        return rows > 0 and (conv.out_channels - rows) * fan_in * places >= COPY * copied + START

    def _computed(self, x: Tensor, rows: Tensor) -> Tensor:
        """Some channels of the output of one image, the others zero."""
        conv: Any = self.conv
        weight, bias = conv.weight.index_select(0, rows), None if conv.bias is None else conv.bias.index_select(0, rows)
        if conv.groups > 1:
            narrow = _convolved(conv, x.index_select(1, rows), weight, bias, len(rows))
        else:
            narrow = _of_present(conv, x, weight, bias)
        found = _some_of(self.norm, narrow, rows)
        whole = found.new_zeros(1, conv.out_channels, *found.shape[2:])
        return whole.index_copy_(1, rows, found)


class Skipping(nn.Module):
    """Mixed into the class of a convolution that reads gated channels: for one image it skips those that are zero."""

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution."""
        conv: Any = self
        if not _alone(self, x) or not _is_large(self, x):
            plain: Tensor = super().forward(x)
            return plain
        return _of_present(self, x, conv.weight, conv.bias)


def _alone(module: nn.Module, x: Tensor) -> bool:
    """One image, for real: not while the model is trained, traced or exported."""
    return not (module.training or x.is_meta or is_observed()) and len(x) == 1


def _places(conv: Any, x: Tensor) -> int:
    """About how many numbers a channel of the output has."""
    return int(x.shape[2] * x.shape[3] // math.prod(conv.stride))


def _is_large(conv: Any, x: Tensor) -> bool:
    """Whether half of it is worth to look for what can be left out."""
    return bool(conv.weight.numel() * _places(conv, x) >= 2 * START)


def _of_present(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of one image, without those channels that are zero where that is faster."""
    columns = x[0].norm(dim=(1, 2)).nonzero().flatten()  # ten times as fast as asking every number
    present, column = len(columns), weight[:, 0].numel()
    price = PICK * present * column + COPY * present * x[0, 0].numel() + START
    if present and (x.shape[1] - present) * column * _places(conv, x) >= price:
        x, weight = x.index_select(1, columns), weight.index_select(1, columns)
    return _convolved(conv, x, weight, bias, 1)


def _convolved(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)


def _scaled_by(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """A batch norm in eval whose masked channels are zero."""
    weight = mask.to(x.dtype) if norm.weight is None else norm.weight * mask
    bias = None if norm.bias is None else norm.bias * mask
    return F.batch_norm(x, norm.running_mean, norm.running_var, weight, bias, training=False, eps=norm.eps)


def _some_of(norm: Any, x: Tensor, rows: Tensor) -> Tensor:
    """A batch norm in eval on some of its channels."""
    if isinstance(norm, nn.Identity):
        return x
    mean, variance, weight, bias = (
        None if tensor is None else tensor.index_select(0, rows)
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=norm.eps)


@cache
def _skipping_class(kind: Any) -> type[nn.Module]:
    return type(f"Skipping{kind.__name__}", (Skipping, kind), {})


def gates_of(module: nn.Module) -> dict[str, Gated]:
    """The gated layers of a model, by path."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Gated)}


def install(module: nn.Module, gates: Sequence[Gate]) -> nn.Module:
    """Put gates into a model in place; their heads ask for everything.

    Raises:
        AttributeError, TypeError: a gate names what is not there, or is no such layer.
    """
    for gate in gates:
        conv, norm = module.get_submodule(gate.conv), nn.Identity()
        if not _can_skip(conv):
            raise TypeError(f"{gate.conv} is no convolution whose channels can be skipped")
        if gate.norm:
            norm = module.get_submodule(gate.norm)  # type: ignore[assignment]
            if not isinstance(norm, nn.BatchNorm2d):
                raise TypeError(f"{gate.norm} is no batch norm")
            module.set_submodule(gate.norm, nn.Identity().train(norm.training))
        head = nn.Linear(conv.in_channels, conv.out_channels).to(conv.weight.device, conv.weight.dtype)
        nn.init.zeros_(head.weight)
        nn.init.ones_(head.bias)
        module.set_submodule(gate.conv, Gated(conv, norm, head).train(conv.training))
    for path in {path for gate in gates for path in gate.readers}:
        _skip(module.get_submodule(path), path)
    return module


def _skip(reader: Any, path: str) -> None:
    kind: Any = type(reader)
    if kind is not nn.Conv2d or reader.groups > 1:
        raise TypeError(f"{path} is no plain convolution")
    reader.__class__ = _skipping_class(kind)


@dataclass(frozen=True)
class Candidate:
    """A gate that could be, and the activation behind it."""

    gate: Gate
    activation: Callable[[Tensor], Tensor]


def candidates(module: nn.Module, example: Example) -> list[Candidate]:
    """Convolutions whose channels can be gated: called once, with an activation behind that leaves zero at zero.

    Those that read the input of the model have nothing to decide from. Of grouped convolutions only depthwise ones.
    """
    tape = record(module, example)
    readers, calls = tape.readers(), tape.calls(("aten.convolution", "aten.native_batch_norm"))
    found: dict[int, Candidate] = {}
    for op in calls.values():
        if not _is_gateable(module, tape, op):
            continue
        following = readers.get(op.outputs[0], [])
        norm = following[0] if len(following) == 1 and _is_norm(module, calls, following[0]) else None
        last = norm or op
        after = readers.get(last.outputs[0], [])
        if len(after) == 1 and after[0].name in ACTIVATIONS and last.outputs[0] not in tape.outputs:
            gate = Gate(op.module, norm.module if norm else "", depthwise=int(op.args[8]) > 1)
            found[last.outputs[0]] = Candidate(gate, _activation(after[0]))
    source = sources(tape, {value: candidate.gate.conv for value, candidate in found.items()})
    taken = {candidate.gate.conv for candidate in found.values()}
    skipping: dict[str, list[str]] = {}
    for op in calls.values():
        writer = source.get(op.args[0].index)
        if writer is not None and op.module not in taken and _is_plain(module, op):
            skipping.setdefault(writer, []).append(op.module)
    return [
        replace(known, gate=replace(known.gate, readers=tuple(skipping.get(known.gate.conv, ()))))
        for known in found.values()
    ]


def _activation(op: Op) -> Callable[[Tensor], Tensor]:
    """The same op on another tensor."""
    function = getattr(torch.ops.aten, op.name.removeprefix("aten.").removesuffix("_"))
    return lambda x: function(x, *op.args[1:], **op.kwargs)


def _can_skip(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """A convolution with zero padding, dense or depthwise with one filter for each input."""
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros":
        return False
    return layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels


def _is_gateable(module: nn.Module, tape: Tape, op: Op) -> bool:
    """A convolution of activations."""
    if op.name != "aten.convolution" or op.args[6] or op.args[0].index in tape.inputs:
        return False
    return _can_skip(module.get_submodule(op.module))


def _is_plain(module: nn.Module, op: Op) -> bool:
    layer = module.get_submodule(op.module)
    return op.name == "aten.convolution" and type(layer) is nn.Conv2d and layer.groups == 1


def _is_norm(module: nn.Module, calls: Mapping[str, Op], op: Op) -> bool:
    own = op.name == "aten.native_batch_norm" and calls.get(op.module) is op
    norm = module.get_submodule(op.module)
    return own and type(norm) is nn.BatchNorm2d and norm.running_mean is not None


def sources(tape: Tape, starts: Mapping[int, str]) -> dict[int, str]:
    """For each value the gate whose closed channels are zero in it.

    Args:
        tape: of the model.
        starts: the gate of each value that one writes.
    """
    found: dict[int, str] = {}
    for op in tape.ops:
        known = [found[ref.index] for ref in op.refs if ref.index in found]
        for output in op.outputs[:1]:
            if output in starts:
                found[output] = starts[output]
            elif known and op.name in _PASSES and len(tape.shapes[output]) == 4:
                found[output] = known[0]
    return found
