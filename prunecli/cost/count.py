"""FLOPs and parameters as polynomials in the widths, read off the tape.

One fused multiply-add counts once; the conventions are those of fvcore, so that the finished model's
count by fvcore is the same number to the last FLOP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import nn

from prunecli.arrays import Bools, Ints
from prunecli.graph.channels import Channels
from prunecli.graph.tape import Op, Ref, Tape

# A factor list: each entry is a number, or (value index, dim).
Dim = tuple[int, int]
Factors = tuple[float, list[Dim]]
Shapes = Sequence[tuple[int, ...]]  # of each value on a tape


def _dims(shapes: Shapes, ref: Ref | int, dims: Iterable[int] | None = None) -> list[Dim]:
    index = ref.index if isinstance(ref, Ref) else ref
    return [(index, d) for d in (range(len(shapes[index])) if dims is None else dims)]


def _convolution(op: Op, shapes: Shapes) -> Factors:
    data, weight = op.args[0], op.args[1]
    spatial = shapes[data.index if op.args[6] else op.outputs[0]][2:]
    batch = shapes[data.index][0]
    return float(batch * math.prod(spatial)), _dims(shapes, weight)


def _deformed_convolution(op: Op, shapes: Shapes) -> Factors:
    batch, _, *places = shapes[op.outputs[0]]
    return float(batch * math.prod(places)), _dims(shapes, op.args[1])


def _matmul(op: Op, shapes: Shapes) -> Factors:
    first, second = op.refs[-2:]
    return 1.0, _dims(shapes, first) + _dims(shapes, second, [-1 + len(shapes[second.index])])


def _grouped_matmul(op: Op, shapes: Shapes) -> Factors:
    return 1.0, _dims(shapes, op.args[0]) + _dims(shapes, op.args[1], [2])


def _linear(op: Op, shapes: Shapes) -> Factors:
    return 1.0, _dims(shapes, op.args[0]) + _dims(shapes, op.args[1], [0])


def _bilinear(op: Op, shapes: Shapes) -> Factors:
    return 1.0, _dims(shapes, op.args[0], [0]) + _dims(shapes, op.args[1])


def _batch_norm(op: Op, shapes: Shapes) -> Factors:
    affine = isinstance(op.args[1], Ref)
    training = bool(op.args[5])  # instance norm arrives as batch norm in training mode
    return float((5 if affine else 4) if training else (2 if affine else 1)), _dims(shapes, op.args[0])


def _norm(position: int) -> Callable[[Op, Shapes], Factors]:
    return lambda op, shapes: (5.0 if isinstance(op.args[position], Ref) else 4.0, _dims(shapes, op.args[0]))


def _adaptive_pool(op: Op, shapes: Shapes) -> Factors:
    return 1.0, _dims(shapes, op.args[0])


def _mean(op: Op, shapes: Shapes) -> Factors:
    """``adaptive_avg_pool2d(1)`` arrives as a mean over the last two dims that keeps them."""
    dims = op.args[1] if len(op.args) > 1 else None
    keepdim = bool(op.args[2]) if len(op.args) > 2 else False
    if dims is not None and sorted(dims) == [-2, -1] and keepdim:
        return _adaptive_pool(op, shapes)
    return 0.0, []


def _per_output(scale: float) -> Callable[[Op, Shapes], Factors]:
    return lambda op, shapes: (scale, _dims(shapes, op.outputs[0]))


FLOPS: dict[str, Callable[[Op, Shapes], Factors]] = {
    "aten.convolution": _convolution,
    "torchvision.deform_conv2d": _deformed_convolution,
    "aten.addmm": _matmul,
    "aten.mm": _matmul,
    "aten.bmm": _matmul,
    "aten.baddbmm": _matmul,
    "aten._grouped_mm": _grouped_matmul,
    "aten.linear": _linear,
    "aten._trilinear": _bilinear,
    "aten.native_batch_norm": _batch_norm,
    "aten.native_layer_norm": _norm(2),
    "aten.native_group_norm": _norm(1),
    "aten._adaptive_avg_pool2d": _adaptive_pool,
    "aten.mean": _mean,
    "aten.upsample_nearest2d": _per_output(1),
    "aten.upsample_bilinear2d": _per_output(4),
    "aten.grid_sampler_2d": _per_output(4),
}


@dataclass(frozen=True)
class Polynomial:
    """A sum of products of widths. A width counts the kept channels along one dim of one tensor.

    Attributes:
        widths: (widths, channels) how often each channel occurs in a width; width 0 is the constant 1.
        coefficients: (terms,).
        factors: (terms, most factors) indices into the widths.
        modules: (terms,) the module that each term belongs to.
    """

    widths: csr_matrix
    coefficients: NDArray[np.float64]
    factors: Ints
    modules: tuple[str, ...]

    def terms(self, kept: Bools | NDArray[np.float64]) -> NDArray[np.float64]:
        """Each term for the kept channels, or for the chances that they are kept, (terms,)."""
        sizes = np.asarray(self.widths @ kept.astype(np.float64))
        sizes[0] = 1.0
        product: NDArray[np.float64] = self.coefficients * sizes[self.factors].prod(axis=1)
        return product

    def __call__(self, kept: Bools) -> int:
        """The whole sum."""
        return round(float(self.terms(kept).sum()))

    def scaled(self, factor: float) -> Polynomial:
        """The same sum times a number."""
        return replace(self, coefficients=self.coefficients * factor)

    def plus(self, constant: float) -> Polynomial:
        """The same sum with a constant added."""
        row = np.zeros((1, self.factors.shape[1]), dtype=np.int64)
        return replace(
            self,
            coefficients=np.append(self.coefficients, constant),
            factors=np.concatenate([self.factors, row]),
            modules=(*self.modules, ""),
        )

    def by_module(self, kept: Bools) -> dict[str, int]:
        """The sum for each module."""
        totals: dict[str, float] = {}
        for module, value in zip(self.modules, self.terms(kept), strict=True):
            totals[module] = totals.get(module, 0.0) + float(value)
        return {module: round(total) for module, total in totals.items()}


class _Builder:
    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.rows: list[Ints] = [np.zeros(0, dtype=np.int64)]
        self.known: dict[bytes, int] = {}
        self.terms: list[tuple[float, list[int], str]] = []

    def width(self, members: Ints) -> int:
        key = members.tobytes()
        if key not in self.known:
            self.known[key] = len(self.rows)
            self.rows.append(members)
        return self.known[key]

    def add(self, coefficient: float, members: list[Ints], module: str) -> None:
        if coefficient:
            self.terms.append((coefficient, [self.width(m) for m in members], module))

    def add_op(self, op: Op, factors: Factors) -> None:
        coefficient, dims = factors
        members = []
        for index, dim in dims:
            label = next((x for x in self.channels.labels.get(index, ()) if x.axis == dim), None)
            if label is None:
                coefficient *= self.channels.tape.shapes[index][dim]
            else:
                members.append(self.channels.of(label.rows()[0]))
        self.add(coefficient, members, op.module)

    def build(self) -> Polynomial:
        columns = np.concatenate(self.rows)
        rows = np.repeat(np.arange(len(self.rows)), [len(r) for r in self.rows])
        shape = (len(self.rows), self.channels.count)
        widths = csr_matrix((np.ones(len(columns)), (rows, columns)), shape=shape)
        most = max((len(f) for _, f, _ in self.terms), default=1)
        factors = np.zeros((len(self.terms), most), dtype=np.int64)
        for number, (_, indices, _) in enumerate(self.terms):
            factors[number, : len(indices)] = indices
        coefficients = np.asarray([c for c, _, _ in self.terms], dtype=np.float64)
        return Polynomial(widths, coefficients, factors, tuple(m for _, _, m in self.terms))


# Ops whose FLOPs are multiply-adds of parameters or activations: what papers count.
MULTIPLY_ADDS = frozenset(
    {
        "aten.convolution",
        "torchvision.deform_conv2d",
        "aten.addmm",
        "aten.mm",
        "aten.bmm",
        "aten.baddbmm",
        "aten._grouped_mm",
        "aten.linear",
        "aten._trilinear",
    }
)


def flops(channels: Channels, ops: Collection[str] = frozenset(FLOPS)) -> Polynomial:
    """FLOPs of one forward pass on the traced input, of some kinds of ops or of all."""
    builder = _Builder(channels)
    for op in channels.tape.ops:
        if op.name in FLOPS and op.name in ops:
            builder.add_op(op, FLOPS[op.name](op, channels.tape.shapes))
    return builder.build()


def flops_on(tape: Tape) -> dict[str, int]:
    """FLOPs of each kind of op in the forward pass on a tape."""
    found: dict[str, float] = {}
    for op in tape.ops:
        if op.name in FLOPS:
            coefficient, dims = FLOPS[op.name](op, tape.shapes)
            times = coefficient * math.prod(tape.shapes[index][dim] for index, dim in dims)
            found[op.name] = found.get(op.name, 0.0) + times
    return {name.partition(".")[2]: round(count) for name, count in found.items()}


def work(channels: Channels) -> Polynomial:
    """What time is spent on: the FLOPs of ops that have any, the elements written by all others."""
    builder = _Builder(channels)
    elements = _per_output(1)
    for op in channels.tape.ops:
        if op.outputs:
            builder.add_op(op, FLOPS.get(op.name, elements)(op, channels.tape.shapes))
    return builder.build()


def params(channels: Channels, names: Iterable[str], unit: Mapping[str, int] | None = None) -> Polynomial:
    """Number of elements of the named parameters and buffers, each weighed by `unit` (bytes, say)."""
    builder = _Builder(channels)
    by_name: dict[str, dict[int, Ints]] = {}
    for slot in channels.slots:
        by_name.setdefault(slot.name, {})[slot.dim] = slot.channels
    for name in names:
        weight = 1 if unit is None else unit[name]
        builder.add(float(weight), list(by_name.get(name, {}).values()), name.rpartition(".")[0])
    return builder.build()


def _all_flops(module: nn.Module, channels: Channels) -> Polynomial:
    del module
    return flops(channels)


def _all_params(module: nn.Module, channels: Channels) -> Polynomial:
    return params(channels, [name for name, _ in module.named_parameters()])


def _all_weights(module: nn.Module, channels: Channels) -> Polynomial:
    return params(channels, [name for name, p in module.named_parameters() if p.ndim > 1])


# What budgets count exactly, by their unit.
COSTS: dict[str, Callable[[nn.Module, Channels], Polynomial]] = {
    "flops": _all_flops,
    "params": _all_params,
    "sparsity": _all_weights,
}
