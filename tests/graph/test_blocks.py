"""Demands that rows keep equally many channels: shorter, and the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.arrays import Bools, Ints
from prunecli.graph.blocks import held, refined

CHANNELS = 12
MASKS = np.array([*itertools.product([False, True], repeat=CHANNELS)])


def holds(blocks: list[Ints]) -> Bools:
    """(masks,) which sets of kept channels keep equally many of every row of each block."""
    found = np.ones(len(MASKS), dtype=np.bool_)
    for rows in blocks:
        counts = MASKS[:, rows].sum(axis=2)
        found &= (counts == counts[:, :1]).all(axis=1)
    return found


@st.composite
def demands(draw: st.DrawFn) -> list[Ints]:
    """Blocks of rows of a shuffled range: pieces of several lengths, some of which are made of others."""
    channels = np.array(draw(st.permutations(range(CHANNELS))))
    blocks = []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.sampled_from([1, 2, 3, 4, 6]))
        pieces = channels.reshape(-1, length)
        chosen = draw(st.lists(st.integers(0, len(pieces) - 1), min_size=1, max_size=6))
        rows = pieces[chosen]
        if draw(st.booleans()) and length > 1:  # rows that overlap the others
            rows = np.array([draw(st.permutations(range(CHANNELS)))[:length] for _ in range(2)])
        blocks.append(rows)
    return blocks


@settings(max_examples=300, deadline=None)
@given(demands())
def test_the_same_choices_are_legal(blocks: list[Ints]) -> None:
    assert np.array_equal(holds(blocks), holds(refined(blocks)))


def test_thirds_of_heads_are_equal_heads() -> None:
    thirds, heads = np.arange(24).reshape(3, 8), np.arange(24).reshape(3, 2, 4)
    (found,) = refined([thirds, *heads])
    assert sorted(map(sorted, found.tolist())) == np.arange(24).reshape(6, 4).tolist()


def test_what_follows_is_said_once() -> None:
    keys, values = np.arange(8).reshape(4, 2), np.arange(8, 24).reshape(4, 4)
    both = np.concatenate([keys, values], axis=1)  # each head has a key and a value
    found = refined([both, keys, values])
    assert sorted(block.shape for block in found) == [(4, 2), (4, 4)]


@pytest.mark.parametrize(
    ("frozen", "stay"),
    [([0, 1], [2, 3, 4, 5]), ([0], []), ([0, 1, 2, 3], [4, 5]), ([4, 5, 2], [0, 1, 3])],
)
def test_what_frozen_rows_hold(frozen: list[int], stay: list[int]) -> None:
    mask = np.isin(np.arange(6), frozen)
    assert sorted(held([np.array([[0, 1], [2, 3]]), np.array([[2, 3], [4, 5]])], mask)) == stay
