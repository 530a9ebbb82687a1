"""Strip and slice are exact on random networks for sequences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import disturb
from sequences import BLOCKS, STEPS, Sequences
from torch import nn

from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import halves, settle, survey
from prunecli.surgery.strip import strip
from prunecli.surgery.verify import compare

EXACT = 1e-11  # of the largest output, float64
EXAMPLE = Example((torch.zeros(2, STEPS, 5, dtype=torch.float64),))
TESTS = [random_example(EXAMPLE, 0), random_example(EXAMPLE, 1, batch=3)]
CASES = {
    "names": st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5),
    "heads": st.sampled_from([1, 2, 4]),
    "shortcuts": st.booleans(),
    "rectified": st.booleans(),
    "seed": st.integers(0, 2**31),
}


def network(share: float, *, seed: int, **shape: object) -> nn.Module:
    return disturb(Sequences(**shape).double(), seed, share)  # type: ignore[arg-type]


def check_strip(share: float, **case: object) -> None:
    module = network(share, **case)  # type: ignore[arg-type]
    stripped = strip(module, EXAMPLE, borders=True)
    assert compare(module, stripped.module, TESTS, torch.float64).max_rel_error <= EXACT


def check_slice(**case: object) -> None:
    module = network(0.0, **case)  # type: ignore[arg-type]
    channels = survey(module, EXAMPLE)
    wish = np.random.default_rng(case["seed"]).random(channels.count) < 0.4  # type: ignore[arg-type]
    for asked in (halves(channels), repair(channels, wish)):
        settled = settle(module, EXAMPLE, channels, asked)
        removed = repair(settled, asked)
        smaller, _ = cut(module, settled, removed)
        found = compare(masked(module, settled, removed), smaller, TESTS, torch.float64)
        assert found.max_rel_error <= EXACT


@settings(max_examples=40)
@given(**CASES, share=st.sampled_from([0.3, 0.9]))
def test_strip_is_exact(share: float, **case: object) -> None:
    check_strip(share, **case)


@settings(max_examples=25)
@given(**CASES)
def test_slice_equals_the_masked_model(**case: object) -> None:
    check_slice(**case)


@pytest.mark.slow
@settings(max_examples=1500)
@given(**CASES, share=st.sampled_from([0.3, 0.6, 0.9]))
def test_both_on_more(share: float, **case: object) -> None:
    check_strip(share, **case)
    check_slice(**case)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_alone(name: str) -> None:
    for heads in (1, 2):
        case = {"names": [name], "heads": heads, "shortcuts": False, "rectified": True, "seed": 0}
        check_strip(0.6, **case)
        check_slice(**case)
