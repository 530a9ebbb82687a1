"""Borders: what constant channels add to a convolution with zero padding.

Inside that is one number for each output channel, as a bias is. At the border the taps of the kernel that lie on the
padding see zeros instead of the constants. So each tap has a bias of its own, and a place gets the sum over the taps
that lie inside: at any input size, in eval and in training, with next to no multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import TAPS
from prunecli.graph.tape import Op, Tape, is_observed
from prunecli.graph.tensors import sharing

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: nn.functional.conv1d,
    nn.Conv2d: nn.functional.conv2d,
    nn.Conv3d: nn.functional.conv3d,
}


class Bordered(nn.Module):
    """Mixed into the class of a convolution whose constant input channels are gone.

    Attributes:
        bias_taps: (out, 1, *kernel) what each tap adds to each output channel where it lies inside the input.
    """

    bias_taps: nn.Parameter
    _last: _Last

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, *size) to (N, out, *result)."""
        result: Tensor = super().forward(x)
        taps = self.bias_taps
        size = x.shape[2 - taps.ndim :]
        remembers = taps.is_cpu and not (torch.is_grad_enabled() or is_observed())  # elsewhere comparing would wait
        return result.add_(self._last.border(self, taps, size) if remembers else self.border(size))

    def border(self, size: Iterable[int]) -> Tensor:
        """(out, *result) the border for inputs of this size.

        Computed on an input that is just large enough; its row (column, plane) where all taps lie inside is repeated.
        """
        layer: Any = self
        layout = zip(size, layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
        small, places, more = zip(*(_shrunk(*dim) for dim in layout), strict=True)
        ones = self.bias_taps.new_ones(1, 1, *small)
        convolution = _CONVOLUTIONS[_plain_class(type(self))]
        found = convolution(ones, self.bias_taps, None, layer.stride, layer.padding, layer.dilation)[0]
        for dim, (place, count) in enumerate(zip(places, more, strict=True), start=1):
            found = _repeated(found, dim, place, count) if count else found
        return found


def _shrunk(extent: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int, int]:
    """An extent that is just large enough, a place where all taps lie inside, and how many more of it there are."""
    place = -(-padding // stride)
    least = place * stride - padding + dilation * (kernel - 1) + 1
    more = (extent - least) // stride if extent > least else 0
    return extent - more * stride, place, more


def _repeated(values: Tensor, dim: int, place: int, more: int) -> Tensor:
    """The same values with more copies of one place along a dim."""
    before, row = values.narrow(dim, 0, place), values.narrow(dim, place, 1)
    after = values.narrow(dim, place + 1, values.shape[dim] - place - 1)
    rows = row.expand([more + 1 if d == dim else -1 for d in range(values.ndim)])
    return torch.cat([part for part in (before, rows, after) if part.shape[dim]], dim)


class _Last:
    """The border that was computed last, and from what; a copy has seen nothing."""

    def __init__(self) -> None:
        self._seen: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def border(self, layer: Bordered, taps: Tensor, size: tuple[int, ...]) -> Tensor:
        """The layer's border, computed anew where the size or the taps have changed."""
        seen = self._seen
        if seen is None or seen[0] != size or seen[1].dtype != taps.dtype or not torch.equal(seen[1], taps):
            self._seen = seen = (size, taps.detach().clone(), layer.border(size).detach())
        return seen[2]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Last:
        return _Last()

    def __reduce__(self) -> tuple[type[_Last], tuple[()]]:
        return _Last, ()


@cache
def _bordered_class(kind: Any) -> type[nn.Module]:
    return type(f"Bordered{kind.__name__}", (Bordered, kind), {})


def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    return next(base for base in kind.__mro__ if base in _CONVOLUTIONS)


def may_border(layer: nn.Module | None) -> bool:
    """Whether it is a plain convolution of one group, padded with a given number of zeros, with a border or without."""
    kind = type(layer).__mro__[2] if isinstance(layer, Bordered) else type(layer)
    if kind not in _CONVOLUTIONS or not isinstance(layer, nn.modules.conv._ConvNd):
        return False
    return layer.groups == 1 and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)


def border(module: nn.Module, paths: Iterable[str]) -> nn.Module:
    """Make layers of a model bordered in place, with taps of zero where they have none.

    Raises:
        TypeError: a layer cannot have a border.
    """
    for path in paths:
        layer: Any = module.get_submodule(path)
        if not may_border(layer):
            raise TypeError(f"{path} is no convolution that could have a border")
        if TAPS not in layer._parameters:
            taps = layer.weight.new_zeros(len(layer.weight), 1, *layer.kernel_size)
            layer.register_parameter(TAPS, nn.Parameter(taps))
        if not isinstance(layer, Bordered):
            kind: Any = type(layer)
            layer.__class__ = _bordered_class(kind)
            layer._last = _Last()
    return module


def bordered(module: nn.Module) -> list[str]:
    """Paths of the layers that have a border."""
    return [path for path, part in module.named_modules() if isinstance(part, Bordered)]


@dataclass(frozen=True)
class Layer:
    """The op that a module is there for, and the value that the module gives."""

    op: Op
    result: int


def layers(module: nn.Module, tape: Tape, names: Collection[str]) -> dict[str, Layer]:
    """`Tape.calls` of layers that share no parameter, and convolutions to whose result their border is added."""
    shared, calls = sharing(module), tape.calls(names)
    found = {path: Layer(op, op.outputs[0]) for path, op in calls.items() if path not in shared}
    for path, ops in tape.by_module().items():
        own = type(module.get_submodule(path)).__mro__[1] is Bordered and "aten.convolution" in names
        if own and sum(op.name == "aten.convolution" for op in ops) == 2:  # called once: the second is of the border
            found[path] = Layer(ops[0], ops[-1].outputs[0])
    return found


def is_own(op: Op, found: Mapping[str, Layer]) -> bool:
    """Whether its module is there for this op."""
    return op.module in found and found[op.module].op is op
