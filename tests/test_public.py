"""The public names are few, and pinned."""

from __future__ import annotations

import prunecli


def test_public_names() -> None:
    assert prunecli.__all__ == [
        "GRDA", "Opening", "PrunecliError", "analyze", "export", "finetune", "load", "load_recipe", "prune", "rule",
    ]  # fmt: skip
    assert dir(prunecli) == prunecli.__all__
    for name in prunecli.__all__:
        assert callable(getattr(prunecli, name)), name


def test_unknown_names_fail() -> None:
    assert not hasattr(prunecli, "pruen")
