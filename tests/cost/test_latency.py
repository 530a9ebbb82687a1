"""Time as a polynomial: close to what is measured, and never out of its fit."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn
from zoo.user_models import MODELS

from prunecli.cost import latency
from prunecli.cost.count import work
from prunecli.cost.latency import _fit, _own_seconds, fitted, preferred_multiple, turns
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.surgery.probe import survey

EXAMPLE = Example((torch.randn(8, 3, 48, 48),))
CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Conv2d(128, 10, 3), nn.Flatten()
    ).eval()


def test_widths_that_would_break_the_model_are_not_tried() -> None:
    """Heads are a share of the stream in Python: not every width can be timed."""
    module, example = MODELS["BiasByIndex"]().eval(), Example((torch.zeros(1, 3, 8, 8),))
    channels = survey(module, example)
    assert fitted(module, example, channels)(np.ones(channels.count, dtype=np.bool_)) > 0


def test_more_channels_never_cost_less() -> None:
    channels = trace(network(), EXAMPLE)
    model = fitted(network(), EXAMPLE, channels)
    order = np.random.default_rng(0).permutation(channels.count)
    kept = np.zeros(channels.count, dtype=bool)
    costs = []
    for channel in order:
        kept[channel] = True
        costs.append(model(kept))
    assert costs == sorted(costs)
    assert costs[-1] > 0


def test_times_that_follow_the_work_are_reproduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each module takes 3 us and 2 ns for each unit of its work; the polynomial then says so at any width."""
    channels = trace(network(), EXAMPLE)
    amounts = work(channels)

    def own_seconds(module: nn.Module, example: Example) -> dict[str, float]:
        done = work(trace(module, example))
        return {n: 3e-6 + 2e-9 * w for n, w in done.by_module(np.ones(done.widths.shape[1], dtype=bool)).items()}

    monkeypatch.setattr(latency, "_own_seconds", own_seconds)
    model = fitted(network(), EXAMPLE, channels)
    for seed in range(5):
        kept = np.random.default_rng(seed).random(channels.count) < 0.7
        kept[channels.frozen] = True
        expected = 3e3 * len(set(amounts.modules)) + 2 * amounts(kept)
        assert model(kept) == pytest.approx(expected, rel=1e-6)


def test_own_time_leaves_the_children_out() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).relu()

    own = _own_seconds(nn.Sequential(Slow()), EXAMPLE)
    assert set(own) == {"", "0", "0.inner"}
    assert own["0.inner"] > own[""] >= 0


def test_fits_are_exact_lines_and_never_negative() -> None:
    assert _fit([1e6, 2e6, 4e6], [15.0, 25.0, 45.0]) == pytest.approx((5.0, 1e-5))
    offset, slope = _fit([1.0, 2.0, 3.0], [9.0, 6.0, 3.0])
    assert offset >= 0
    assert slope == 0


def test_every_turn_runs_all_in_an_order_of_its_own() -> None:
    calls: list[str] = []
    found = turns([lambda: calls.append("a"), lambda: time.sleep(0.01) or calls.append("b")], CPU, seconds=0, least=20)
    assert found.shape == (20, 2)
    assert (found[:, 1] > found[:, 0]).all()  # a figure stays with its run
    order = ["".join(pair) for pair in zip(calls[::2], calls[1::2], strict=True)]
    assert set(order) == {"ab", "ba"}


def test_work_counts_elements_where_there_are_no_flops() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU()).eval()
    channels = trace(module, Example((torch.zeros(1, 3, 5, 5),)))
    assert work(channels).by_module(np.ones(channels.count, dtype=bool)) == {"0": 3 * 4 * 25, "1": 4 * 25}


def test_a_multiple_is_chosen_once() -> None:
    assert preferred_multiple() in (1, 2, 4, 8, 16, 32)
    assert preferred_multiple() == preferred_multiple()
