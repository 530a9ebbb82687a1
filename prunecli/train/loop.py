"""The one training loop: fine-tuning now, and every method that trains.

A run is a pure function of (weights, data, settings, seed) on one CPU: the order of the images and their
augmentation follow from seed and epoch, the learning rate from the step. What cannot be computed again
(weights, optimizer, averages, random state) is saved now and then, so a killed run continues bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunecli.device import usable
from prunecli.errors import CheckpointError, InputError
from prunecli.graph.copying import copied
from prunecli.graph.tape import output_tensors
from prunecli.methods.hook import Hook
from prunecli.recipe.schema import Distill, Train
from prunecli.train.data import Data
from prunecli.train.evaluate import accuracy, in_batches
from prunecli.train.schedule import learning_rate

AUXILIARY = 0.3  # weight of auxiliary heads (Szegedy et al. 2015)


@dataclass(frozen=True)
class Tick:
    """Progress after one step. `accuracy` is that of the last validation, None before the first.

    `figures` are those of the method: sparsity, thresholds.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    accuracy: float | None
    finished_epoch: bool
    figures: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Tick], None]


def ignore(tick: Tick) -> None:
    """Report to nobody."""


class KeepZeros(Hook):
    """Weights that are zero at the start stay zero."""

    def __init__(self, module: nn.Module) -> None:
        zeros = {name: p == 0 for name, p in module.named_parameters() if p.ndim > 1}
        self._zeros = {name: zero for name, zero in zeros.items() if bool(zero.any())}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Put the zeros back."""
        del step
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, zero in self._zeros.items():
                parameters[name].masked_fill_(zero.to(parameters[name].device), 0)

    def state(self) -> dict[str, Any]:
        """The masks, since later weights may be zero by accident."""
        return dict(self._zeros)

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._zeros = dict(state)


@dataclass(frozen=True)
class Fit:
    """The trained model (the best by validation) and its validation accuracy after each epoch."""

    module: nn.Module
    accuracies: list[float]


@dataclass
class _Run:
    """All that changes while training."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: torch.optim.swa_utils.AveragedModel | None
    hooks: Sequence[Hook]
    step: int = 0
    accuracies: list[float] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    @property
    def result(self) -> nn.Module:
        """The weights that count: the average where there is one."""
        return self.average.module if self.average is not None else self.module

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "hooks": [hook.state() for hook in self.hooks],
            "step": self.step,
            "accuracies": self.accuracies,
            "best": self.best,
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for hook, saved in zip(self.hooks, state["hooks"], strict=True):
            hook.restore(saved)
        self.step, self.accuracies, self.best = state["step"], state["accuracies"], state["best"]
        torch.set_rng_state(state["random"])


@dataclass(frozen=True)
class Saver:
    """Where the resumable state goes, what identifies the run, and whether to continue from it."""

    path: Path
    identity: str
    resume: bool = False
    seconds: float = 60.0

    def save(self, run: _Run) -> None:
        """Write the state whole or not at all."""
        from prunecli.checkpoint.write import atomic

        with atomic(self.path) as stream:
            torch.save({"identity": self.identity, **run.state()}, stream)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none yet.

        Raises:
            InputError: the state is damaged or belongs to another run.
        """
        if not self.resume or not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error}", hint="start again without --resume"
            ) from error
        if state.get("identity") != self.identity:
            raise InputError(
                f"{self.path} belongs to another run (other model, data or settings)",
                hint="give the same arguments as before, or start again without --resume",
            )
        return state


@dataclass(frozen=True)
class Trainer:
    """One training run, ready to start.

    Attributes:
        data: training images; a seeded part of them is held out for validation.
        settings: of the recipe.
        seed: of order, augmentation and dropout.
        teacher: distil from it (Hinton et al. 2015).
        hooks: what a method adds.
        saver: where the resumable state goes.
        report: called after each step.
    """

    data: Data
    settings: Train
    seed: int = 0
    teacher: nn.Module | None = None
    hooks: Sequence[Hook] = ()
    saver: Saver | None = None
    report: Report = ignore

    def fit(self, module: nn.Module) -> Fit:
        """Train a copy of `module`, which stays as it is.

        Raises:
            InputError: the device is not there, or the saved state does not belong to this run.
        """
        device, layout = _device(self.settings.device), _layout(self.settings)
        student = copied(module).to(device).to(memory_format=layout)
        for hook in self.hooks:
            hook.attach(student, self._steps)
        run = _Run(student, _optimizer(student, self.settings), _average(student, self.settings), self.hooks)
        teacher = None if self.teacher is None else copied(self.teacher).eval().to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            saved = self.saver.load() if self.saver else None
            if saved is not None:
                run.restore(saved)
            self._train(run, _Loss(self.settings, teacher))
        result = run.result
        if run.best is not None and all(hook.keeps_best for hook in self.hooks):
            result.load_state_dict(run.best)
        for hook in self.hooks:
            hook.finalize(result)
        return Fit(result.to("cpu").to(memory_format=torch.contiguous_format).eval(), run.accuracies)

    @property
    def _steps(self) -> int:
        """Optimizer steps of the whole run."""
        kept, _ = _hold_out(len(self.data.train.labels), self.settings.validation, self.seed)
        return self.settings.epochs * -(-len(kept) // self.settings.batch_size)

    def _train(self, run: _Run, loss_of: _Loss) -> None:
        settings, labels, steps = self.settings, self.data.train.labels, self._steps
        kept, held_out = _hold_out(len(labels), settings.validation, self.seed)
        per_epoch = -(-len(kept) // settings.batch_size)
        started = saved_at = time.monotonic()
        seen = 0
        while run.step < steps:
            epoch, position = divmod(run.step, per_epoch)
            order = kept[torch.randperm(len(kept), generator=_generator(self.seed, epoch))]
            batches = in_batches(order, settings.batch_size)[position:]
            augment = (self.seed + 1) * 100_003 + epoch if settings.augment else None
            for chosen, images in zip(batches, self.data.train.batches(batches, augment), strict=True):
                rate = learning_rate(settings, run.step, steps, per_epoch)
                loss = _step(run, loss_of, images, labels[chosen], rate)
                seen += len(chosen)
                finished = run.step % per_epoch == 0
                if finished and len(held_out):
                    _validate(run, self.data, held_out)
                known = run.accuracies[-1] if run.accuracies else None
                speed = seen / (time.monotonic() - started)
                own = {name: value for hook in run.hooks for name, value in hook.figures().items()}
                self.report(Tick(epoch, settings.epochs, run.step, steps, loss, speed, known, finished, own))
                if self.saver and time.monotonic() - saved_at >= self.saver.seconds:
                    self.saver.save(run)
                    saved_at = time.monotonic()


def _step(run: _Run, loss_of: _Loss, images: Tensor, labels: Tensor, rate: float) -> float:
    run.module.train()
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(run.module, images, labels)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    for hook in run.hooks:
        hook.after_step(run.module, run.step + 1)
    if run.average is not None:
        run.average.update_parameters(run.module)
    run.step += 1
    return float(loss.detach())


def _validate(run: _Run, data: Data, held_out: Tensor) -> None:
    """Keep the weights where they are the best so far."""
    now = accuracy(run.result, data.train, held_out)
    if not run.accuracies or now >= max(run.accuracies):
        run.best = {name: t.detach().cpu().clone() for name, t in run.result.state_dict().items()}
    run.accuracies.append(now)


class _Loss:
    """Cross entropy, plus auxiliary heads and distillation where there are any."""

    def __init__(self, settings: Train, teacher: nn.Module | None) -> None:
        self._settings = settings
        self._teacher = teacher

    def __call__(self, module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        home = next(module.parameters())
        images = images.to(home.device).to(memory_format=_layout(self._settings))
        labels = labels.to(home.device)
        with torch.autocast(home.device.type, torch.bfloat16, enabled=self._settings.bf16):
            main, *others = output_tensors(module(images))
            loss = self._classify(main, labels)
            for other in (o for o in others if o.shape == main.shape):
                loss = loss + AUXILIARY * self._classify(other, labels)
            return loss if self._teacher is None else self._distil(loss, main, images)

    def _classify(self, found: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(found.float(), labels, label_smoothing=self._settings.label_smoothing)

    def _distil(self, loss: Tensor, found: Tensor, images: Tensor) -> Tensor:
        assert self._teacher is not None
        distill = self._settings.distill or Distill()
        weight, heat = distill.weight, distill.temperature
        with torch.no_grad():
            target = F.log_softmax(output_tensors(self._teacher(images))[0].float() / heat, 1)
        divergence = F.kl_div(F.log_softmax(found.float() / heat, 1), target, log_target=True, reduction="batchmean")
        return (1 - weight) * loss + weight * heat**2 * divergence


def _layout(settings: Train) -> torch.memory_format:
    return torch.channels_last if settings.channels_last else torch.preserve_format


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)


def _hold_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, and indices to validate on."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = round(count * share)
    return order[held_out:].sort().values, order[:held_out].sort().values


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable(name, "train.device: auto, cpu or cuda")


def _optimizer(module: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Norms and biases are not decayed with AdamW; with SGD everything is, as in the papers."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            module.parameters(), settings.lr, settings.momentum,
            weight_decay=settings.weight_decay, nesterov=settings.nesterov and settings.momentum > 0,
        )  # fmt: skip
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, settings.lr)


def _average(module: nn.Module, settings: Train) -> torch.optim.swa_utils.AveragedModel | None:
    if settings.ema is None:
        return None
    step = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema)
    return torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=step, use_buffers=True)
