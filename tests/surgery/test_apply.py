"""Cuts of single tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunecli.surgery import apply
from prunecli.surgery.apply import sliced


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], dict[int, np.ndarray]]:  # type: ignore[type-arg]
    """A shape, and what stays along some of its dims."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    places = {
        dim: np.flatnonzero(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        for dim, size in enumerate(shape)
        if draw(st.booleans())
    }
    return shape, places


@pytest.mark.parametrize("block", [1, 16, apply._BLOCK])
@given(cut=cuts())
def test_what_is_kept_is_what_numpy_selects(block: int, cut: tuple[list[int], dict[int, np.ndarray]]) -> None:  # type: ignore[type-arg]
    shape, places = cut
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    expected = tensor.numpy()
    for dim, stay in places.items():
        expected = expected.take(stay, axis=dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apply, "_BLOCK", block)
        found = sliced(tensor, "weight", {("weight", dim): stay for dim, stay in places.items()})
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or not found.numel()
    assert found.is_contiguous()
