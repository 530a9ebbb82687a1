"""gRDA: the paper's steps, its closed forms, the exact example of directional pruning, and a real training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from courses import course
from interruptions import continued
from torch import Tensor, nn

import prunecli
from prunecli.errors import RecipeError
from prunecli.methods.dual_averaging import DualAveraging, increment, quantile
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Train
from prunecli.train.data import open_data
from prunecli.train.loop import Trainer

START = [0.5, -0.02, 0.0, 0.001]
GRADIENTS = ([1, -1, 0.5, 0], [0.2, 0.1, -0.3, 0], [-0.4, 0.3, 0.1, 0.2])


def weights(values: list[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: object) -> list[float]:
    weight.grad = torch.as_tensor(gradient, dtype=torch.float64)
    optimizer.step()
    return weight.tolist()  # type: ignore[no-any-return]


def test_the_golden_steps() -> None:
    weight = weights(START)
    optimizer = prunecli.GRDA([weight], lr=0.1, c=0.05, mu=0.6)
    expected = (
        [0.39602836, 0.07602836, -0.04602836, 0],
        [0.37398012, 0.06398012, -0.01398012, 0],
        [0.41232209, 0.03232209, -0.02232209, -0.01132209],
    )
    for gradient, after, threshold in zip(GRADIENTS, expected, (0.003971641, 0.006019882, 0.007677905), strict=True):
        assert stepped(optimizer, weight, gradient) == pytest.approx(after, abs=1e-8)
        assert optimizer.param_groups[0]["threshold"] == pytest.approx(threshold, abs=1e-9)


def test_a_lower_learning_rate_never_lowers_the_threshold() -> None:
    weight = weights(START)
    optimizer = prunecli.GRDA([weight], lr=0.1, c=0.05, mu=0.6)
    for gradient in GRADIENTS[:2]:
        stepped(optimizer, weight, gradient)
    optimizer.param_groups[0]["lr"] = 0.01
    after = stepped(optimizer, weight, GRADIENTS[2])
    assert optimizer.param_groups[0]["threshold"] == pytest.approx(0.006151584, abs=1e-9)
    assert after == pytest.approx([0.37784842, 0.06084842, -0.01484841, 0], abs=1e-8)


def test_without_a_threshold_it_is_sgd_bit_for_bit() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(50)), nn.Parameter(torch.empty(50))
    theirs.data = ours.detach().clone()
    pair = prunecli.GRDA([ours], lr=0.1, c=0.0), torch.optim.SGD([theirs], lr=0.1)
    for _ in range(20):
        gradient = torch.randn(50)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in pair:
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not pair[0].state


def test_a_thousand_steps_equal_the_two_lines_of_the_paper() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(30, dtype=torch.float64))
    optimizer = prunecli.GRDA([weight], lr=0.05, c=0.01, mu=0.7)
    v = weight.detach().clone()
    for step in range(1, 1001):
        gradient = torch.randn(30, dtype=torch.float64)
        stepped(optimizer, weight, gradient)
        v -= 0.05 * gradient
        g = 0.01 * 0.05**0.5 * (step * 0.05) ** 0.7
        torch.testing.assert_close(weight.detach(), v.sign() * (v.abs() - g).relu(), atol=1e-12, rtol=0)


def test_without_gradients_it_thresholds_where_it_started() -> None:
    weight = weights([0.5, -0.3, 0.01])
    optimizer = prunecli.GRDA([weight], lr=0.1, c=0.1, mu=0.6)
    gone = 0
    for _ in range(200):
        after = stepped(optimizer, weight, [0.0, 0.0, 0.0])
        assert after.count(0) >= gone
        gone = after.count(0)
    g = optimizer.param_groups[0]["threshold"]
    assert after == pytest.approx([max(0.5 - g, 0), -max(0.3 - g, 0), 0])


def test_a_weight_at_zero_comes_back_when_its_sum_leaves_the_threshold() -> None:
    weight = weights([0.001])
    optimizer = prunecli.GRDA([weight], lr=0.1, c=0.05, mu=0.6)
    assert stepped(optimizer, weight, [0.0]) == [0]
    after = stepped(optimizer, weight, [-5.0])
    assert after == pytest.approx([0.501 - optimizer.param_groups[0]["threshold"]])


@pytest.mark.parametrize(("start", "moves"), [((1.3, -0.3), True), ((0.7, 0.3), False)])
def test_it_moves_along_the_flat_direction_only(start: tuple[float, float], moves: bool) -> None:
    """L(w) = (w1 + w2 - 1)^2 / 2 is flat along (1, -1); magnitude pruning climbs out of it."""
    weight = weights(list(start))
    rate, c, mu = 0.01, 0.05, 0.6
    optimizer = prunecli.GRDA([weight], lr=rate, c=c, mu=mu)
    for step in range(1, 501):
        loss = (weight.sum() - 1).square() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shift = c * rate**0.5 * (step * rate) ** mu if moves else 0.0
        close = 1e-9 if moves else 1e-2
        assert weight.tolist() == pytest.approx([start[0] - shift, start[1] + (shift if moves else 0)], abs=close)
        assert float(loss.detach()) < (1e-18 if moves else 1e-4)


def test_increments_add_up_to_the_closed_form() -> None:
    summed = sum(increment(0.005, 0.55, 0.1, n) for n in range(1, 10001))
    assert summed == pytest.approx(0.005 * 0.1**0.5 * (10000 * 0.1) ** 0.55)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        prunecli.GRDA([weights([1.0])], lr=0.1, mu=1.5)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10)).eval()


NAMES = ["1.weight", "3.weight"]


def test_the_threshold_is_predicted_for_the_weights_as_they_are() -> None:
    module, known = net(), course(100)
    hook = DualAveraging(NAMES, 0.8, None, 0.55, 0)
    hook.attach(module, known)
    found = [module.get_parameter(name).detach().clone() for name in NAMES]
    assert hook.predictions()["threshold"] == pytest.approx(quantile(found, 0.8))
    optimizer = hook.optimizer(module, known.settings)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for step in range(1, 101):
        optimizer.step()
        hook.after_step(module, step)
    assert optimizer.param_groups[0]["threshold"] == pytest.approx(quantile(found, 0.8))
    hook.finalize(module)
    assert hook.outcomes()["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert (module[1].bias != 0).all()


def test_resumed_and_uninterrupted_runs_agree_bit_for_bit(tmp_path: Path) -> None:
    data, settings = open_data("digits", (1, 8, 8), 10), Train(epochs=2, batch_size=256, lr=0.1, save_seconds=0)

    def run(**options: object) -> tuple[dict[str, Tensor], dict[str, float]]:
        hook = DualAveraging(NAMES, 0.8, None, 0.55, 128)
        fit = Trainer(data, settings, hooks=[hook], **options).fit(net())  # type: ignore[arg-type]
        return fit.module.state_dict(), dict(fit.outcomes)

    resumed, found = continued(run, tmp_path, 6)
    whole, expected = run()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert found == expected


def recipe(**fields: object) -> object:
    given = {
        "version": 1, "data": "digits", "method": {"name": "grda"}, "budget": {"sparsity": 0.9},
        "train": {"epochs": 6, "lr": 0.1, "batch_size": 64},
    }  # fmt: skip
    return validate({k: v for k, v in (given | fields).items() if v is not None})


DIGITS = str(Path(__file__).parents[2] / "recipes" / "digits.safetensors")


def test_a_real_training_meets_the_budget_and_stays_in_the_valley(tmp_path: Path) -> None:
    facts = prunecli.prune(recipe(), DIGITS, tmp_path / "sparse.safetensors")
    assert 0.9 <= facts.budget.met <= 0.905
    assert facts.after.accuracy > facts.before.accuracy - 0.03
    assert facts.verified.max_rel_error < 1e-12
    assert facts.predicted["threshold"] > 0
    assert facts.found["barrier"] < 0.1


def test_the_papers_own_scale_takes_no_budget(tmp_path: Path) -> None:
    given = {"name": "grda", "c": 0.01, "mu": 0.6}
    with pytest.raises(RecipeError, match="takes no budget"):
        recipe(method=given)
    facts = prunecli.prune(recipe(method=given, budget=None), DIGITS, tmp_path / "sparse.safetensors")
    assert facts.found["threshold"] == pytest.approx(facts.predicted["threshold"])
    assert facts.found["sparsity"] > 0
