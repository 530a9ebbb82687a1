"""FLOPs of a model with gates: a number for every image.

Heads are counted, channels that a residual stream refills are counted as there, and a depthwise convolution costs
what its open channels with an open input cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunecli.arrays import Floats
from prunecli.cost.count import flops
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.surgery.gates import Gated, gates_of, sources

Masks = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Term:
    """FLOPs of one layer with all gates open, and the gates before and behind it (empty: none)."""

    flops: float
    writes: str = ""
    reads: str = ""
    depthwise: bool = False

    def of(self, masks: Masks) -> Floats:
        """FLOPs for each image, from masks (images, channels) by gate."""
        shares: Floats
        if self.depthwise and self.writes and self.reads:
            shares = (masks[self.writes] & masks[self.reads]).mean(1)
        else:
            shares = np.prod([masks[gate].mean(1) for gate in (self.writes, self.reads) if gate], axis=0)
        return self.flops * shares


@dataclass(frozen=True)
class DynamicCost:
    """FLOPs as a function of masks.

    Attributes:
        constant: what every image costs, the heads included.
        terms: what gates decide about.
    """

    constant: float
    terms: tuple[Term, ...]

    def __call__(self, masks: Masks) -> Floats:
        """(images,)."""
        count = len(next(iter(masks.values())))
        return np.full(count, self.constant) + sum((term.of(masks) for term in self.terms), np.zeros(count))


def dynamic_cost(module: nn.Module, example: Example) -> DynamicCost:
    """Of a model with gates, for one image of the example's size."""
    channels = trace(module, example)
    tape = channels.tape
    by_module = flops(channels).by_module(np.ones(channels.count, dtype=np.bool_))
    gates = gates_of(module)
    last = {op.module: op.outputs[0] for op in tape.ops if op.module in gates}  # where the mask is multiplied in
    source = sources(tape, {value: gate for gate, value in last.items()})
    batch = len(example.args[0])
    terms: dict[str, Term] = {}
    for op in tape.ops:
        gate = op.module.rpartition(".")[0]
        writes, reads = gate if gate in gates else "", source.get(op.refs[0].index, "") if op.refs else ""
        if op.name == "aten.convolution" and (writes or reads):
            depthwise = int(op.args[8]) > 1
            terms[op.module] = Term(by_module[op.module] / batch, writes, reads, depthwise)
        elif op.name == "aten.native_batch_norm" and writes:
            terms[op.module] = Term(by_module[op.module] / batch, writes)
    constant = sum(value for name, value in by_module.items() if name not in terms) / batch
    return DynamicCost(constant, tuple(terms.values()))


@contextmanager
def watching(module: nn.Module) -> Iterator[dict[str, Gated]]:
    """The gates remember the masks of each forward pass."""
    gates = gates_of(module)
    before = {name: gate.watched for name, gate in gates.items()}
    for gate in gates.values():
        gate.watched = True
    try:
        yield gates
    finally:
        for name, gate in gates.items():
            gate.watched, gate.seen, gate.mask = before[name], None, None


@torch.no_grad()
def masks_of(module: nn.Module, images: Iterable[Tensor]) -> dict[str, NDArray[np.bool_]]:
    """(images, channels) by gate, in eval mode."""
    found: dict[str, list[Tensor]] = {}
    training = module.training
    module.eval()
    try:
        with watching(module) as gates:
            for batch in images:
                module(batch)
                for name, gate in gates.items():
                    assert gate.mask is not None
                    found.setdefault(name, []).append(gate.mask.bool().cpu())
    finally:
        module.train(training)
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}
