"""The loop: repeatable, resumable to the bit, and it learns."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.cli.app import app
from prunecli.errors import InputError, OutcomeError
from prunecli.methods.hook import Hook
from prunecli.recipe.schema import Distill, Train
from prunecli.train.data import open_data
from prunecli.train.evaluate import accuracy
from prunecli.train.loop import Tick, Trainer
from prunecli.train.order import Order
from prunecli.train.schedule import learning_rate
from prunecli.train.state import Saver
from prunecli.train.zeros import KeepZeros

DATA = open_data("digits", (1, 8, 8), 10)


def net() -> nn.Module:
    torch.manual_seed(0)
    return build(parse("digits_net"))


def equal(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(t, other[n]) for n, t in first.state_dict().items())


SETTINGS = {
    "plain": Train(epochs=2, batch_size=64),
    "all": Train(
        epochs=2, batch_size=64, ema=0.9, label_smoothing=0.1, warmup_epochs=0.5, schedule="step", nesterov=True
    ),
    "adamw": Train(epochs=1, batch_size=32, optimizer="adamw", lr=1e-3, channels_last=True, bf16=True),
}


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_run_continues_to_the_bit(name: str, tmp_path: Path) -> None:
    settings, module = SETTINGS[name], net()

    def stop(tick: Tick) -> None:
        if tick.step == 31:
            raise Stop

    whole = Trainer(DATA, settings, 3).fit(module)
    saver = Saver(tmp_path / "state", "run", seconds=0)
    with pytest.raises(Stop):
        Trainer(DATA, settings, 3, saver=saver, report=stop).fit(module)
    again = Saver(tmp_path / "state", "run", resume=True, seconds=1e9)
    resumed = Trainer(DATA, settings, 3, saver=again).fit(module)
    assert equal(whole.module, resumed.module)
    assert whole.accuracies == resumed.accuracies


@pytest.mark.parametrize(("size", "first"), [(32, 19), (64, 10), (128, 6)])
def test_with_other_processes_it_is_as_far_along(size: int, first: int, tmp_path: Path) -> None:
    """Half as many processes take twice as many steps; here the size of a batch says so."""
    steps: list[int] = []

    def stop(tick: Tick) -> None:
        if tick.step == 10:
            raise Stop

    def settings(size: int) -> Train:
        return Train(epochs=2, batch_size=size, validation=0.0)

    with pytest.raises(Stop):
        Trainer(DATA, settings(64), saver=Saver(tmp_path / "state", "run", seconds=0), report=stop).fit(net())
    again = Saver(tmp_path / "state", "run", resume=True, seconds=1e9)
    Trainer(DATA, settings(size), saver=again, report=lambda tick: steps.append(tick.step)).fit(net())
    assert steps[0] == first
    assert steps[-1] == Order(len(DATA.train), settings(size), 0).steps


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    Trainer(DATA, Train(epochs=1), saver=Saver(tmp_path / "state", "one", seconds=0)).fit(net())
    with pytest.raises(InputError, match="another run"):
        Trainer(DATA, Train(epochs=1), saver=Saver(tmp_path / "state", "two", resume=True)).fit(net())


def test_a_model_of_fixed_parameters_is_refused() -> None:
    with pytest.raises(InputError, match="no parameter of the model requires a gradient"):
        Trainer(DATA, Train(epochs=1)).fit(net().requires_grad_(requires_grad=False))


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be read"):
        Trainer(DATA, Train(epochs=1), saver=Saver(tmp_path / "state", "one", resume=True)).fit(net())


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_and_resume_through_the_command_line(seed: int, tmp_path: Path) -> None:
    """kill -9 at a random moment; the resumed weights equal those of a run that was never stopped."""
    arguments = [
        "finetune", "digits_net", "--data", "digits", "--recipe", "train-digits",
        "--set", "train.save_seconds=0", "--epochs", "2", "-q", "-o",
    ]  # fmt: skip
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "whole.safetensors")]).exit_code == 0
    killed = tmp_path / "killed.safetensors"
    process = subprocess.Popen([sys.executable, "-m", "prunecli", *arguments, str(killed)])
    state, deadline = tmp_path / "killed.safetensors.resume", time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 0.2))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    assert CliRunner().invoke(app, [*arguments, str(killed), "--resume"]).exit_code == 0
    assert killed.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not state.exists()


def test_it_learns_and_the_input_stays_as_it_is() -> None:
    module = net()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    trained = Trainer(DATA, Train(epochs=5, lr=0.1, batch_size=64, validation=0.1)).fit(module)
    assert accuracy(trained.module, DATA.test) > 0.9
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


def test_a_training_that_diverges_says_so_or_keeps_what_was_won() -> None:
    settings = Train(epochs=3, lr=1e6, batch_size=64, validation=0.0)
    with pytest.raises(OutcomeError, match="training diverged: after"):
        Trainer(DATA, settings).fit(net())

    class Poison(Hook):
        def after_step(self, module: nn.Module, step: int) -> None:
            if step == 60:
                with torch.no_grad():
                    next(module.parameters()).fill_(torch.nan)

    settings = Train(epochs=4, lr=0.05, batch_size=64, validation=0.1)
    kept = Trainer(DATA, settings, hooks=[Poison()]).fit(net())
    assert accuracy(kept.module, DATA.test) > 0.7
    settings = Train(epochs=1, batch_size=-(-len(DATA.train) // 60), validation=0.0)  # poisoned by the last step
    with pytest.raises(OutcomeError, match="after 60 steps a weight is not finite"):
        Trainer(DATA, settings, hooks=[Poison()]).fit(net())


def test_the_best_epoch_by_validation_is_kept() -> None:
    """A learning rate that explodes after the first epoch cannot cost what was won."""

    class Explode(Hook):
        steps = 0

        def after_step(self, module: nn.Module, step: int) -> None:
            self.steps += 1
            if self.steps == 70:
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter.normal_()

    settings = Train(epochs=4, lr=0.05, batch_size=64, validation=0.1, schedule="constant")
    trained = Trainer(DATA, settings, hooks=[Explode()]).fit(net())
    kept = accuracy(trained.module, DATA.test)
    assert max(trained.accuracies) > 0.85
    assert abs(kept - max(trained.accuracies)) < 0.1


def test_an_average_of_a_short_run_is_none_of_its_start() -> None:
    class Steps(Hook):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def after_step(self, module: nn.Module, step: int) -> None:
            self.seen.append(next(module.parameters()).detach().cpu().clone())

    steps = Steps()
    settings = Train(epochs=4, lr=0.1, batch_size=64, validation=0.0, ema=0.999)
    averaged = Trainer(DATA, settings, hooks=[steps]).fit(net()).module
    expected = steps.seen[0]
    for number, weight in enumerate(steps.seen[1:], 1):
        decay = min(0.999, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(next(averaged.parameters()), expected, atol=1e-6)
    assert accuracy(averaged, DATA.test) > 0.9


def test_distillation_pulls_towards_the_teacher() -> None:
    """With all weight on the teacher the labels do not matter."""
    teacher = Trainer(DATA, Train(epochs=4, lr=0.1, batch_size=64)).fit(net()).module
    wrong = open_data("digits", (1, 8, 8), 10)
    wrong.train.labels.copy_(wrong.train.labels.flip(0))
    settings = Train(epochs=4, lr=0.05, batch_size=64, validation=0, distill=Distill(weight=1.0))
    student = Trainer(wrong, settings, teacher=teacher).fit(net()).module
    assert accuracy(student, DATA.test) > 0.85


def test_zeros_stay_zero() -> None:
    module = net()
    module.stem[0].weight.data[:7] = 0
    trained = Trainer(DATA, Train(epochs=1), hooks=[KeepZeros(module)]).fit(module).module
    assert bool((trained.stem[0].weight[:7] == 0).all())
    assert not torch.equal(trained.stem[0].weight, module.stem[0].weight)


def test_dropout_does_not_move_the_users_random_state() -> None:
    module = net()
    before = torch.get_rng_state()
    Trainer(DATA, Train(epochs=1)).fit(module)
    assert torch.equal(before, torch.get_rng_state())


def test_schedules() -> None:
    cosine = Train(lr=1.0, warmup_epochs=1)
    rates = [learning_rate(cosine, step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    step = Train(lr=1.0, schedule="step", milestones=[0.5, 0.75], gamma=0.1)
    assert [learning_rate(step, s, 100, 10) for s in (0, 49, 50, 74, 75)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert learning_rate(Train(lr=0.3, schedule="constant"), 99, 100, 10) == 0.3
