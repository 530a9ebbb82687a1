"""Layout ops on the positions of a label: the same as torch's, without the positions that are all alike."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.graph.labels import along, route
from prunecli.graph.reshaping import reshaped


@st.composite
def factorised(draw: st.DrawFn, count: int) -> tuple[int, ...]:
    """Sizes whose product is `count`, ones among them."""
    sizes = []
    while count > 1:
        size = draw(st.sampled_from([n for n in range(2, count + 1) if count % n == 0]))
        sizes += [size, *[1] * draw(st.integers(0, 1))]
        count //= size
    return (*[1] * draw(st.integers(0, 1)), *sizes)


@st.composite
def expanded_and_shape(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A tensor of which some dims were expanded, and another shape with as many positions."""
    count = draw(st.sampled_from([1, 2, 6, 8, 24, 36, 60]))
    old, new = draw(factorised(count)), draw(factorised(count))
    own = [size if draw(st.booleans()) else 1 for size in old]
    return torch.arange(math.prod(own)).reshape(own).expand(old), new


@given(expanded_and_shape())
@settings(max_examples=300, deadline=None)
def test_an_expanded_tensor_is_reshaped_as_torch_does(case: tuple[torch.Tensor, tuple[int, ...]]) -> None:
    tensor, shape = case
    assert torch.equal(reshaped(tensor, shape), tensor.reshape(shape))


def test_dims_that_were_expanded_are_not_copied() -> None:
    """Attention in the windows of a video: (windows, heads, n, n) becomes (windows * heads, n, n)."""
    heads = torch.arange(3).reshape(1, 3, 1, 1).expand(64, 3, 392, 392)
    moved = reshaped(heads, (192, 392, 392))
    assert moved.shape == (192, 392, 392)
    assert moved.untyped_storage().nbytes() == 192 * 8


def test_a_route_holds_each_position_once() -> None:
    """A roll copies all positions; along the dims that do not matter they are alike."""
    label = along(np.arange(5, 11), 3, 4)
    path = route(label, (2, 8, 8, 6), lambda p: torch.roll(p, (3, 3), (1, 2)))
    assert path.axes == (3,)
    assert path.positions.shape == (1, 1, 1, 6)
    assert path.positions.base is None  # nor do others lie behind them
