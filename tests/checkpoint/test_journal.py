"""Journals compose and survive JSON."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from prunecli.checkpoint.journal import Journal, indices_of, ranges

INDICES = st.lists(st.integers(0, 300), unique=True).map(sorted).map(tuple)


@given(INDICES)
def test_ranges_round_trip(indices: tuple[int, ...]) -> None:
    assert indices_of(ranges(indices)) == indices


@given(st.dictionaries(st.tuples(st.sampled_from(["a.weight", "b:odd", "c"]), st.integers(0, 3)), INDICES))
def test_json_round_trip(kept: dict[tuple[str, int], tuple[int, ...]]) -> None:
    journal = Journal(kept, {"conv": {"groups": 3, "channel_pads": [1, 2]}})
    assert Journal.from_json(json.loads(json.dumps(journal.to_json()))) == journal


def test_two_cuts_are_one() -> None:
    first = Journal({("w", 0): (1, 3, 5, 7)}, {"m": {"groups": 4}})
    second = Journal({("w", 0): (0, 2), ("w", 1): (4,)}, {"m": {"groups": 2}})
    both = first.then(second)
    assert both.kept == {("w", 0): (1, 5), ("w", 1): (4,)}
    assert both.attributes == {"m": {"groups": 2}}
