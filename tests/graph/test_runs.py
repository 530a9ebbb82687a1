"""Components by runs of ids are those of the ids one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.arrays import Ints
from prunecli.graph import runs
from prunecli.graph.channels import components
from prunecli.graph.runs import runs_of

COUNT = 40


@st.composite
def sides(draw: st.DrawFn, size: int) -> Ints:
    """Ids in a row, in two rows, one id over and over, or any."""
    start = st.integers(0, COUNT - size)
    half = size // 2
    return draw(
        st.one_of(
            start.map(lambda a: np.arange(a, a + size)),
            st.tuples(start, start).map(
                lambda a: np.concatenate([np.arange(a[0], a[0] + half), np.arange(a[1], a[1] + size - half)])
            ),
            start.map(lambda a: np.full(size, a)),
            st.lists(st.integers(0, COUNT - 1), min_size=size, max_size=size).map(np.array),
        )
    )


@st.composite
def ties(draw: st.DrawFn) -> list[tuple[Ints, Ints]]:
    sizes = draw(st.lists(st.integers(0, COUNT), min_size=0, max_size=6))
    return [(draw(sides(size)), draw(sides(size))) for size in sizes]


def one_by_one(found: list[tuple[Ints, Ints]]) -> list[int]:
    """Numbers in order of the first id of each component."""
    parent = [*range(COUNT)]
    for first, second in found:
        for pair in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted(parent[i] for i in pair)
            parent = [low if root == high else root for root in parent]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root, len(numbers)) for root in parent]


@given(ties(), st.sampled_from([0, 1, 4]), st.sampled_from([1, 8]))
def test_components_are_those_of_the_ids_one_by_one(found: list[tuple[Ints, Ints]], short: int, rounds: int) -> None:
    """However soon runs are given up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_SHORT", short)
        patch.setattr(runs, "_ROUNDS", rounds)
        assert components(COUNT, found).tolist() == one_by_one(found)


def test_dims_that_are_tied_as_a_whole_are_one_node() -> None:
    """A concatenation cuts them where its parts meet, and what is tied to those."""
    a, b, c, d = np.split(np.arange(1, 401), 4)
    assert runs_of(401, [(a, b), (c, d)]).starts.tolist() == [0, 1, 101, 201, 301]
    parts = np.concatenate([a[:60], c[:40]])
    assert runs_of(401, [(parts, b), (b, d)]).starts.tolist() == [0, 1, 61, 101, 161, 201, 241, 301, 361]
