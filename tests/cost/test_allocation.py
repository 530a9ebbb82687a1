"""Budgets by layer: closed forms of uniform, ERK and LAMP, and shares that come from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunecli.cost.allocation import allocate, by_ratio, erk, kept_shares, lamp
from prunecli.errors import InputError

LAYERS = {"a": {"a": (16, 8, 3, 3)}, "b": {"b": (40, 10)}}


def scores(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {"a": draw.random(16 * 8 * 9), "b": draw.random(400) * 100}


def kept(found: dict[str, np.ndarray], share: float) -> dict[str, float]:
    """What a global search keeps of each layer."""
    every = np.concatenate(list(found.values()))
    bar = np.sort(every)[::-1][round(share * len(every)) - 1]
    return {name: float((own >= bar).mean()) for name, own in found.items()}


def test_uniform_keeps_the_same_share_of_every_layer() -> None:
    shares = kept(allocate("uniform", scores(), LAYERS), 0.3)
    assert shares["a"] == pytest.approx(0.3, abs=2e-3)
    assert shares["b"] == pytest.approx(0.3, abs=2e-3)


def test_erk_densities_have_the_ratio_of_the_papers_formula() -> None:
    shares = kept(allocate("erk", scores(), LAYERS), 0.2)
    expected = ((16 + 8 + 3 + 3) / (16 * 8 * 9)) / ((40 + 10) / 400)
    assert shares["a"] / shares["b"] == pytest.approx(expected, rel=0.02)
    assert erk([(16, 8, 3, 3)]) == pytest.approx(30 / 1152)


def test_erk_never_asks_for_more_than_all() -> None:
    shares = kept(allocate("erk", scores(), LAYERS), 0.6)
    assert shares["b"] == 1.0
    assert (1152 * shares["a"] + 400) / 1552 == pytest.approx(0.6, abs=1e-3)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_lamp_is_the_papers_sum(values: list[float], order: object) -> None:
    values = sorted(set(values))
    order.shuffle(values)  # type: ignore[attr-defined]
    found = lamp(np.array(values))
    for value, score in zip(values, found, strict=True):
        rest = sum(v * v for v in values if v >= value)
        assert score == pytest.approx(value * value / rest if rest else 0, rel=1e-9)


@given(st.integers(1, 50), st.floats(0.02, 1.0))
def test_ratios_keep_the_best(count: int, share: float) -> None:
    draw = np.random.default_rng(count).random(count)
    chosen = by_ratio(draw, share) >= 1
    assert abs(chosen.sum() - share * count) <= 0.5 + 1e-9
    assert not chosen.any() or draw[chosen].min() >= draw[~chosen].max(initial=-1)


def test_a_csv_says_what_stays(tmp_path: Path) -> None:
    path = tmp_path / "budget.csv"
    path.write_text("layer,keep\na,0.25\n")
    found = allocate(str(path), scores(), LAYERS)
    assert (found["a"] >= 1).mean() == pytest.approx(0.25, abs=1e-3)
    assert np.isinf(found["b"]).all()


def earlier(path: Path, rows: int) -> Path:
    sparse = torch.ones(40, 10)
    sparse[:, :4] = 0
    save_file({"a.weight": torch.ones(rows, 8, 3, 3), "b.weight": sparse}, path)
    return path


def test_an_earlier_result_hands_its_widths_on(tmp_path: Path) -> None:
    shares = kept_shares(earlier(tmp_path / "cut.safetensors", 4), {"a": (16, 8, 3, 3), "b": (40, 10)})
    assert shares == {"a": 0.25, "b": 1.0}


def test_an_earlier_result_may_spell_its_names_otherwise(tmp_path: Path) -> None:
    """A prefix that looks like a wrapper's may be the network's own, or not."""
    shapes = {"net.a": (16, 8, 3, 3), "net.b": (40, 10)}
    for prefix in ("", "module."):
        state = {f"{prefix}{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
        torch.save(state, tmp_path / "e.pt")
        assert kept_shares(tmp_path / "e.pt", shapes) == {"net.a": 1.0, "net.b": 1.0}


def test_an_earlier_result_of_full_width_hands_its_density_on(tmp_path: Path) -> None:
    shares = kept_shares(earlier(tmp_path / "sparse.safetensors", 16), {"a": (16, 8, 3, 3), "b": (40, 10)})
    assert shares == {"a": 1.0, "b": 0.6}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("layer,share\na,0.5\n", "columns layer and keep"),
        ("layer,keep\na,1.5\n", ":2: keep is '1.5'"),
        ("layer,keep\na,many\n", ":2: keep is 'many'"),
        ("layer,keep\naa,0.5\n", "'aa' is no layer"),
        ("layer,keep\n", "names no layer"),
    ],
)
def test_csv_mistakes(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "budget.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=problem):
        allocate(str(path), scores(), LAYERS)
