"""Strip and slice are exact on random networks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from programs import Network, Step, disturb, steps
from torch import nn

from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import settle
from prunecli.surgery.strip import strip

EXACT = 1e-11  # of the largest output, float64


def network(program: list[Step], flat: bool, seed: int, share: float) -> nn.Module:
    try:
        built = Network(program, flat)
    except (RuntimeError, ValueError):  # the drawn sizes do not fit together
        assume(False)
        raise
    return disturb(built.double(), seed, share)


def difference(first: nn.Module, second: nn.Module, size: int) -> float:
    """Largest difference relative to the largest output."""
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        a, b = first(inputs), second(inputs)
    assert a.shape == b.shape
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))


def check_strip(program: list[Step], flat: bool, seed: int, share: float) -> None:
    module = network(program, flat, seed, share)
    before = copy.deepcopy(module.state_dict())
    example = Example((torch.zeros(1, 3, Network.SIZE, Network.SIZE, dtype=torch.float64),))
    stripped = strip(module, example, borders=bool(seed % 2))
    for size in (Network.SIZE,) if flat else (Network.SIZE, Network.SIZE + 3):
        assert difference(module, stripped.module, size) <= EXACT
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    count = sum(p.numel() for p in stripped.module.parameters())
    assert stripped.removed == 0 or count < sum(p.numel() for p in module.parameters())


def check_slice(program: list[Step], flat: bool, seed: int) -> None:
    module = network(program, flat, seed, 0.0)
    example = Example((torch.zeros(1, 3, Network.SIZE, Network.SIZE, dtype=torch.float64),))
    channels = settle(module, example, trace(module, example))
    wish = np.random.default_rng(seed).random(channels.count) < 0.4
    removed = repair(channels, wish)
    channels = settle(module, example, channels, removed)
    removed = repair(channels, removed)
    smaller, _ = cut(module, channels, removed)
    assert difference(masked(module, channels, removed), smaller, Network.SIZE) <= EXACT


CASES = {"program": steps(), "flat": st.booleans(), "seed": st.integers(0, 2**31)}
SHARES = st.sampled_from([0.3, 0.6, 0.9, 1.2])


@settings(max_examples=100)
@given(**CASES, share=SHARES)
def test_strip_is_exact(program: list[Step], flat: bool, seed: int, share: float) -> None:
    check_strip(program, flat, seed, share)


@settings(max_examples=50)
@given(**CASES)
def test_slice_equals_the_masked_model(program: list[Step], flat: bool, seed: int) -> None:
    check_slice(program, flat, seed)


@pytest.mark.slow
@settings(max_examples=5000)
@given(**CASES, share=SHARES)
def test_strip_is_exact_on_five_thousand(program: list[Step], flat: bool, seed: int, share: float) -> None:
    check_strip(program, flat, seed, share)
