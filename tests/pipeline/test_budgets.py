"""Asked against met: never above, within 1 % below, for every unit and every way to share it out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zoo.user_models import MODELS

import prunecli
from prunecli.checkpoint.journal import Journal
from prunecli.cost.count import Polynomial
from prunecli.errors import InputError, RecipeError
from prunecli.facts import PruneFacts
from prunecli.pipeline.limits import Limit, Solution, confirmed
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Iterative


def prune(budget: dict[str, object], source: str, output: Path, **method: object) -> PruneFacts:
    fields = {"version": 1, "method": {"name": "magnitude", **method}, "budget": budget}
    return prunecli.prune(validate(fields), source, output)


CHANNELS = [
    {"flops": 0.3, "per_layer": "uniform"}, {"flops": 0.5, "per_layer": "erk"}, {"flops": 0.7, "per_layer": "lamp"},
    {"params": 0.3, "per_layer": "erk"}, {"params": 0.5, "per_layer": "lamp"}, {"params": 0.8, "per_layer": "uniform"},
    {"flops": "30M"}, {"params": "100k"}, {"size": 0.4}, {"size": 0.7}, {"size": "500kB"},
    {"flops": 0.5, "iterative": {"steps": 3}}, {"params": 0.4, "iterative": {"steps": 4, "schedule": "cubic"}},
]  # fmt: skip


@pytest.mark.parametrize("budget", CHANNELS, ids=str)
def test_channels(budget: dict[str, object], checkpoint: str, tmp_path: Path) -> None:
    facts = prune(budget, checkpoint, tmp_path / "out.safetensors")
    assert facts.budget.asked * 0.98 - 0.005 <= facts.budget.met <= facts.budget.asked
    name = {"size": "bytes"}.get(facts.budget.unit, facts.budget.unit)
    assert facts.budget.met == pytest.approx(getattr(facts.after, name) / getattr(facts.before, name), abs=1e-9)
    assert facts.verified.max_rel_error < 1e-12


@pytest.mark.parametrize("per_layer", ["global", "uniform", "erk", "lamp"])
@pytest.mark.parametrize("steps", [None, 3])
def test_sparsity(per_layer: str, steps: int | None, checkpoint: str, tmp_path: Path) -> None:
    budget = {"sparsity": 0.93, "per_layer": per_layer} | ({"iterative": {"steps": steps}} if steps else {})
    facts = prune(budget, checkpoint, tmp_path / "out.safetensors", structure="weight")
    assert 0.93 <= facts.budget.met <= 0.9301


def test_the_file_has_the_asked_size(checkpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    prune({"size": "400kB"}, checkpoint, output)
    assert 0.985 * 400_000 <= output.stat().st_size <= 400_000


def test_shares_of_an_earlier_result_and_of_a_csv(checkpoint: str, tmp_path: Path) -> None:
    first = prune({"flops": 0.5}, checkpoint, tmp_path / "first.safetensors")
    again = prune({"per_layer": str(tmp_path / "first.safetensors")}, checkpoint, tmp_path / "second.safetensors")
    widths = {cut.group: cut.after for cut in first.cuts}
    assert {cut.group: cut.after for cut in again.cuts} == widths
    path = tmp_path / "budget.csv"
    with path.open("w", newline="") as stream:
        rows = [("layer", "keep"), *((cut.group, cut.after / cut.before) for cut in first.cuts)]
        csv.writer(stream).writerows(rows)
    from_csv = prune({"per_layer": str(path)}, checkpoint, tmp_path / "third.safetensors")
    assert {cut.group: cut.after for cut in from_csv.cuts} == widths


def test_latency_is_measured_below_the_limit(tmp_path: Path) -> None:
    source = "torchvision:squeezenet1_1"
    fields = {"version": 1, "input": "1x3x96x96", "method": {"name": "magnitude"}, "budget": {"latency": 0.7}}
    facts = prunecli.prune(validate(fields), source, tmp_path / "out.safetensors")
    assert 0 < facts.budget.met <= 0.7


def test_an_impossible_size_names_the_nearest(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the size budget 1kB was not met: the nearest that was measured is"):
        prune({"size": "1000B"}, checkpoint, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "budget",
    [{"flops": 0.5, "size": 0.5}, {}, {"iterative": {"steps": 3}}, {"flops": 0.5, "iterative": {"steps": 1}},
     {"latency": 20}, {"latency": 0.5, "runtime": "onnxruntime", "device": "cuda"}],
)  # fmt: skip
def test_budgets_that_make_no_sense(budget: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="budget"):
        validate({"version": 1, "method": {"name": "magnitude"}, "budget": budget})


def test_times_have_units() -> None:
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"latency": "5ms"}})
    assert recipe.budget.amount == 5e6


def test_the_cubic_schedule_is_the_papers() -> None:
    assert Iterative(steps=4, schedule="cubic").shares() == [1 - (1 - t / 4) ** 3 for t in (1, 2, 3, 4)]
    assert Iterative(steps=4).shares() == [0.25, 0.5, 0.75, 1.0]


def simple_cost(count: int) -> Polynomial:
    """How many channels stay."""
    from scipy.sparse import csr_matrix

    widths = csr_matrix(np.vstack([np.zeros(count), np.ones(count)]))
    return Polynomial(widths, np.ones(1), np.array([[1]]), ("",))


@pytest.mark.parametrize("truth", [lambda n: 2.0 * n, lambda n: 30 + 0.7 * n, lambda n: n**1.5 / 10])
def test_a_wrong_model_of_the_cost_is_corrected(truth: object) -> None:
    count, whole = 1000, truth(1000)  # type: ignore[operator]

    def solve(amount: float) -> Solution:
        removed = np.ones(count, dtype=bool)
        removed[: max(1, min(count, int(amount)))] = False
        module = nn.Module()
        module.figure = truth(int((~removed).sum()))  # type: ignore[operator]
        return Solution(removed, module, Journal())

    limit = Limit("latency", whole, 0.5 * whole, simple_cost(count), lambda m, _: m.figure)  # type: ignore[arg-type]
    removed, figure = confirmed(limit, solve)
    assert 0.97 * 0.5 * whole <= figure <= 0.5 * whole
    assert figure == truth(int((~removed).sum()))  # type: ignore[operator]


def test_what_lies_beside_the_weights_is_no_part_of_the_size(checkpoint: str, tmp_path: Path) -> None:
    """Three times the bytes, and still half of the weights has to go."""
    state = torch.load(checkpoint)
    momenta = {number: {"momentum_buffer": tensor.clone()} for number, tensor in enumerate(state.values())}
    copies = {name: tensor.clone() for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": copies, "optimizer": {"state": momenta}}, tmp_path / "last.pt")
    settings = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"size": 0.5}})
    facts = prunecli.prune(settings, str(tmp_path / "last.pt"), tmp_path / "o.safetensors")
    weights = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert facts.before.bytes == weights
    assert 0.45 * weights < (tmp_path / "o.safetensors").stat().st_size <= 0.5 * weights
    assert any("last.pt are no weights of the model" in note for note in facts.notes)
    plain = prunecli.prune(settings, checkpoint, None)
    assert plain.before.bytes == Path(checkpoint).stat().st_size
    assert not any("no weights" in note for note in plain.notes)


@pytest.mark.parametrize("share", [pytest.param(0.9, marks=pytest.mark.slow), 0.7])
def test_a_dry_run_tells_the_size_that_the_file_would_have(share: float, tmp_path: Path) -> None:
    """Of a small network much of the file is its header."""
    settings = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"size": share}})
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    found = [prunecli.prune(settings, MODELS["BothWays"](), path, takes) for path in (None, tmp_path / "o.safetensors")]
    assert all(facts.budget is not None for facts in found)
    dry, written = (facts.budget.met for facts in found)
    assert share - 0.1 < written <= dry <= share  # the file reserves some room


def test_states_go_down_to_one_of_each_direction() -> None:
    """What is alone has no label, and looked like a part that was taken at a fixed position."""
    settings = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"params": 0.05}})
    facts = prunecli.prune(settings, MODELS["BothWays"](), None, prunecli.Opening.like(torch.zeros(1, 3, 8, 8)))
    assert facts.after.params <= 0.05 * facts.before.params
