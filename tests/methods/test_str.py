"""STR: the paper's numbers, exact insertion and removal, the asked sparsity, and a real training."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from courses import course
from hypothesis import given
from hypothesis import strategies as st
from interruptions import continued
from randomise import randomise
from torch import nn
from torch.nn.utils import parametrize

import prunecli
from prunecli.errors import InputError
from prunecli.graph.tape import Example
from prunecli.methods.hook import Course
from prunecli.methods.norm_thresholds import NormThresholds
from prunecli.methods.str import SoftThresholds
from prunecli.methods.thresholds import SoftThreshold, Thresholds, soft, wake_up
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Budget, Train
from prunecli.train.data import open_data
from prunecli.train.loop import Trainer
from prunecli.train.schedule import learning_rate

WEIGHT = torch.tensor([[-0.5, 0.02, 0.0], [0.3, -0.1, 1.2]], dtype=torch.float64, requires_grad=True)
UPSTREAM = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)


def test_the_golden_vectors() -> None:
    threshold = SoftThreshold(-2.0, WEIGHT)
    assert float(threshold.threshold.detach()) == pytest.approx(0.11920292, abs=1e-8)
    found = threshold(WEIGHT)
    expected = torch.tensor([[-0.38079708, 0, 0], [0.18079708, 0, 1.08079708]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
    to_weight, to_s = torch.autograd.grad(found, [WEIGHT, threshold.s], UPSTREAM)
    assert to_weight.tolist() == [[1, 0, 0], [4, 0, 6]]
    assert float(to_s) == pytest.approx(-0.94494227, abs=1e-8)


def test_without_a_threshold_it_is_the_identity() -> None:
    assert torch.equal(SoftThreshold(-1e9, WEIGHT)(WEIGHT), WEIGHT)


@given(st.floats(0, 2), st.floats(0, 2))
def test_two_thresholds_are_their_sum(first: float, second: float) -> None:
    w = torch.linspace(-3, 3, 41, dtype=torch.float64)
    a, b = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    torch.testing.assert_close(soft(soft(w, a), b), soft(w, a + b))
    torch.testing.assert_close(soft(-w, a), -soft(w, a))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10)).eval()


NAMES = ["1.weight", "3.weight"]


def test_insertion_changes_no_output() -> None:
    module, example = net().double(), torch.randn(5, 1, 8, 8).double()
    expected = module(example)
    Thresholds(NAMES, 0.9, -5.0, 0.75).attach(module, course(10))
    torch.testing.assert_close(module(example), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_what_is_left_is_plain_and_the_same_bit_for_bit(sparsity: float) -> None:
    module, example = net(), torch.randn(5, 1, 8, 8)
    hook = Thresholds(NAMES, sparsity, -5.0, 0.75)
    hook.attach(module, course(10))
    hook.after_step(module, 10)
    expected = module(example)
    hook.finalize(module)
    assert not parametrize.is_parametrized(module)
    assert torch.equal(module(example), expected)
    weights = torch.cat([module[1].weight.flatten(), module[3].weight.flatten()])
    zeros = float((weights == 0).double().mean())
    assert sparsity <= zeros <= sparsity + 2 / len(weights)


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_weights_above_one_go_as_well(sparsity: float) -> None:
    """No sigmoid is as large: they go last, the smallest of them first."""
    module = net()
    with torch.no_grad():
        module[1].weight.mul_(100)
    sizes = module[1].weight.abs()
    hook = Thresholds(["1.weight"], sparsity, -5.0, 0.75)
    hook.attach(module, course(10))
    hook.finalize(module)
    zero = module[1].weight == 0
    assert int(zero.sum()) == math.ceil(sparsity * zero.numel())
    assert sizes[zero].max() < sizes[~zero].min()


def test_sparsity_follows_the_cubic_schedule() -> None:
    module = net()
    hook = Thresholds(NAMES, 0.9, -10.0, 0.5)
    hook.attach(module, course(100))
    for step, expected in ((10, 0.9 * (1 - 0.8**3)), (20, 0.9 * (1 - 0.6**3)), (50, 0.9), (90, 0.9)):
        hook.after_step(module, step)
        weights = torch.cat([module[1].weight.flatten(), module[3].weight.flatten()])
        assert float((weights == 0).double().mean()) == pytest.approx(expected, abs=1e-3)
        assert hook.figures()["sparsity"] == pytest.approx(expected, abs=1e-3)


def test_resumed_and_uninterrupted_runs_agree_bit_for_bit(tmp_path: Path) -> None:
    data, settings = open_data("digits", (1, 8, 8), 10), Train(epochs=2, batch_size=256, save_seconds=0)

    def run(**options: object) -> dict[str, torch.Tensor]:
        hook = Thresholds(NAMES, 0.8, -6.0, 0.75)
        return Trainer(data, settings, hooks=[hook], **options).fit(net()).module.state_dict()  # type: ignore[arg-type]

    resumed = continued(run, tmp_path, 6)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in run().items())


def recipe(**fields: object) -> object:
    given = {
        "version": 1, "data": "digits", "method": {"name": "str"}, "budget": {"sparsity": 0.9},
        "train": {"epochs": 6, "lr": 0.05, "batch_size": 64},
    }  # fmt: skip
    return validate(given | fields)


def test_a_real_training_meets_the_budget_and_keeps_the_accuracy(tmp_path: Path) -> None:
    digits = str(Path(__file__).parents[2] / "recipes" / "digits.safetensors")
    facts = prunecli.prune(recipe(), digits, tmp_path / "sparse.safetensors")
    assert 0.9 <= facts.budget.met <= 0.905
    assert facts.after.accuracy > facts.before.accuracy - 0.03
    assert facts.verified.max_rel_error < 1e-12
    assert not parametrize.is_parametrized(prunecli.load(tmp_path / "sparse.safetensors"))


def test_a_run_that_cannot_prune_is_refused_before_it_starts() -> None:
    hook = Thresholds(NAMES, None, -3200.0, 0.75)
    with pytest.raises(InputError, match="would not reach"):
        hook.attach(net(), course(39100, rate=0.128, momentum=0.875, weight_decay=2.25e-5))


def test_the_papers_wake_up_epochs() -> None:
    """28 of 100 epochs at 5005 steps for the 90 % model, 10 for the 99 % one (warm-up and cosine as there)."""
    for s_init, decay, epoch in ((-3200.0, 2.2518e-5, 28), (-12800.0, 9.05e-5, 10), (-100.0, 3.05e-5, 9)):
        settings = Train(epochs=100, lr=0.256, momentum=0.875, weight_decay=decay, warmup_epochs=5, schedule="cosine")
        rates = [learning_rate(settings, step, 100 * 5005, 5005) for step in range(0, 100 * 5005, 5)]
        known = Course([5 * rate for rate in rates], settings, iter, iter, 0, None)  # type: ignore[arg-type]
        assert 100 * wake_up(known, s_init) == pytest.approx(epoch, abs=1)


def test_decay_alone_wakes_the_thresholds_up() -> None:
    data, settings = open_data("digits", (1, 8, 8), 10), Train(epochs=4, lr=0.1, weight_decay=0.02, schedule="constant")
    hook = Thresholds(NAMES, None, -20.0, 0.75)
    fit = Trainer(data, settings, hooks=[hook]).fit(net())
    assert 0 < fit.predictions["wake-up"] < 1
    assert fit.outcomes["sparsity"] > 0
    assert fit.outcomes["sparsity"] == pytest.approx(
        sum(int((fit.module.get_parameter(n) == 0).sum()) for n in NAMES) / (64 * 40 + 40 * 10)
    )


def test_learned_shares_are_a_budget_for_other_methods(tmp_path: Path) -> None:
    digits = str(Path(__file__).parents[2] / "recipes" / "digits.safetensors")
    shares = tmp_path / "shares.csv"
    facts = prunecli.prune(recipe(report={"layers": str(shares)}), digits, tmp_path / "str.safetensors")
    rows = list(csv.DictReader(shares.open()))
    assert set(rows[0]) == {"layer", "keep", "threshold"}
    assert {float(row["threshold"]) > 0 for row in rows} == {True}
    taken = recipe(method={"name": "magnitude", "structure": "weight"}, budget={"per_layer": str(shares)}, train=None)
    other = prunecli.prune(taken, digits, tmp_path / "magnitude.safetensors")
    for name, known in facts.layers.items():
        assert other.layers[name]["keep"] == pytest.approx(known["keep"], abs=0.02), name


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return randomise(nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )).eval()  # fmt: skip


def test_insertion_into_batch_norms_changes_no_output() -> None:
    module, example = convolutional().double(), torch.randn(5, 1, 8, 8).double()
    with torch.no_grad():
        module[1].weight[0] = 0.0  # a channel that is its shift
        module[1].weight[1] *= -1
    expected = module(example)
    known = replace(course(10), example=Example((torch.zeros(1, 1, 8, 8).double(),)))
    NormThresholds(SoftThresholds(name="str", structure="channel"), Budget(flops=0.5)).attach(module, known)
    torch.testing.assert_close(module(example), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(module[1].weight[2:], convolutional().double()[1].weight[2:], atol=1e-12, rtol=0)


def test_a_thresholded_scale_takes_its_shift_along() -> None:
    module = convolutional()
    hook = NormThresholds(SoftThresholds(name="str", structure="channel"), Budget(flops=0.5))
    hook.attach(module, course(10))
    hook.after_step(module, 10)
    gone = (module[1].weight == 0) | (module[4].weight[:12] == 0)
    assert gone.any()
    assert bool((module[1].bias[module[1].weight == 0] == 0).all())
    hook.finalize(module)
    assert not any(map(parametrize.is_parametrized, module.modules()))
    assert hook.outcomes()["flops"] <= 0.5


@pytest.mark.parametrize("rise", [1.0, 6.0, 12.0])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_thresholds_that_rise_too_far_are_held(rise: float, share: float) -> None:
    module = convolutional()
    hook = NormThresholds(SoftThresholds(name="str", structure="channel"), Budget(flops=share))
    hook.attach(module, course(10))
    norms = [module[1], module[4]]
    for norm in norms:
        norm.parametrizations["weight"][0].s.data += rise
    hook.after_step(module, 10)
    assert all(int((norm.weight != 0).sum()) >= 2 for norm in norms)
    left = hook.figures()["flops"]
    hook.finalize(module)
    assert share - 0.1 <= left <= hook.outcomes()["flops"] <= share


def test_scales_above_one_do_not_go_all_at_once() -> None:
    module = convolutional()
    for norm in (module[1], module[4]):
        norm.weight.data = 1 + norm.weight.data.abs()
    hook = NormThresholds(SoftThresholds(name="str", structure="channel"), Budget(flops=0.4))
    hook.attach(module, course(10))
    hook.after_step(module, 10)
    assert 0.3 <= hook.figures()["flops"] <= 0.4


def test_one_layer_may_not_go_as_a_whole() -> None:
    module = convolutional()
    hook = NormThresholds(SoftThresholds(name="str", structure="channel"), Budget(flops=0.3))
    hook.attach(module, course(10))
    module[1].parametrizations["weight"].original.data *= 1e-3
    hook.after_step(module, 10)
    assert int((module[1].weight != 0).sum()) >= 2


def test_channels_go_and_the_flops_are_met(tmp_path: Path) -> None:
    digits = str(Path(__file__).parents[2] / "recipes" / "digits.safetensors")
    asked = recipe(method=NARROW, budget={"flops": 0.5}, train=LONGER)
    facts = prunecli.prune(asked, digits, tmp_path / "narrow.safetensors")
    assert 0.47 <= facts.budget.met <= 0.5
    assert facts.removed_channels > 0
    assert facts.after.accuracy > 0.9
    assert facts.verified.max_rel_error < 1e-12


NARROW = {"name": "str", "structure": "channel", "s_init": -4, "ramp": 0.5}
LONGER = {"epochs": 8, "lr": 0.05, "batch_size": 64}


def test_what_it_needs(tmp_path: Path) -> None:
    digits = str(Path(__file__).parents[2] / "recipes" / "digits.safetensors")
    with pytest.raises(InputError, match="needs data and epochs"):
        prunecli.prune(recipe(train=None), digits, tmp_path / "o.safetensors")
    with pytest.raises(InputError, match="a dry run cannot tell"):
        prunecli.prune(recipe(), digits, None)
