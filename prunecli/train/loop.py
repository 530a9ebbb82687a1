"""The one training loop: fine-tuning, and every method that trains.

A run is a pure function of (weights, data, settings, seed) on one CPU: the order of the images and their
augmentation follow from seed and epoch, the learning rate from the step. What cannot be computed again
(weights, optimizer, averages, random state) is saved now and then, so a killed run continues bit for bit.
Under ``torchrun`` every process takes its part of each step.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prunecli.collectives import accompanied, share, together, total
from prunecli.device import chosen
from prunecli.errors import InputError, OutcomeError, blamed
from prunecli.graph.copying import copied, moved, placed
from prunecli.graph.tape import Example, record
from prunecli.graph.tensors import home, stored
from prunecli.methods.hook import Batch, Course, Hook
from prunecli.ranks import world
from prunecli.recipe.schema import Train
from prunecli.surgery.recover import recalibrate
from prunecli.train.data import Data
from prunecli.train.evaluate import accuracy
from prunecli.train.loss import Loss
from prunecli.train.order import Order, Part
from prunecli.train.schedule import learning_rate
from prunecli.train.sharding import gathered, is_sharded, load, load_optimizer, shard, sum_gradients, whole
from prunecli.train.split import Drawn
from prunecli.train.state import Saver
from prunecli.train.synchronised import synchronised

CALIBRATION = 2048  # images for the batch norms of a network that has changed at the end


@dataclass(frozen=True)
class Tick:
    """Progress after one step. `accuracy` is that of the last validation, None before the first.

    `figures` are those of the method: sparsity, thresholds. `expected` is what was predicted before the first step.
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
    expected: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Tick], None]
Value = TypeVar("Value")


def ignore(tick: Tick) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Fit:
    """The trained model (the best by validation), its validation accuracy after each epoch, and what a method says.

    Attributes:
        predictions: by name, made before the first step.
        outcomes: by name, found at the end.
        by_layer: what a method says of single weights.
        continued: it went on from a saved state.
    """

    module: nn.Module
    accuracies: list[float]
    predictions: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[str, float] = field(default_factory=dict)
    by_layer: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    continued: bool = False


@dataclass
class _Run:
    """All that changes while training."""

    module: nn.Module
    forward: Callable[[Tensor], Any]
    optimizer: torch.optim.Optimizer
    average: torch.optim.swa_utils.AveragedModel | None
    hooks: Sequence[Hook]
    bf16: bool
    own_random: Sequence[torch.device]
    steps: int
    step: int = 0
    accuracies: list[float] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    @property
    def result(self) -> nn.Module:
        """The weights that count: the average where there is one."""
        return self.average.module if self.average is not None else self.module

    @property
    def keeps_best(self) -> bool:
        """Whether the best weights by validation are known, and are the result."""
        return self.best is not None and all(hook.keeps_best for hook in self.hooks)

    def quiet(self, more: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over processes with the last part of a step only."""
        sum_gradients(self.module, not more)
        parallel = more and isinstance(self.forward, nn.parallel.DistributedDataParallel)
        return self.forward.no_sync() if parallel else nullcontext()  # type: ignore[attr-defined]

    def state(self) -> dict[str, Any]:
        return {
            "module": whole(self.module.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "average": None if self.average is None else self.average.state_dict(),
            "hooks": [hook.state() for hook in self.hooks],
            "step": self.step,
            "steps": self.steps,
            "accuracies": self.accuracies,
            "best": self.best,
            "random": [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.own_random)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there: as far along the run where more or fewer processes take steps of another size now."""
        load(self.module, state["module"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for hook, saved in zip(self.hooks, state["hooks"], strict=True):
            hook.restore(saved)
        self.step = round(state["step"] * self.steps / state["steps"])
        self.accuracies, self.best = state["accuracies"], state["best"]
        of_the_cpu, *others = state["random"]
        torch.set_rng_state(of_the_cpu)
        for device, own in zip(self.own_random, others, strict=False):  # it may go on where there is no GPU
            torch.cuda.set_rng_state(own, device)


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
        expected: predictions of the caller, for the report.
        start: epochs that came before, where a run trains in parts.
    """

    data: Data
    settings: Train
    seed: int = 0
    teacher: nn.Module | None = None
    hooks: Sequence[Hook] = ()
    saver: Saver | None = None
    report: Report = ignore
    expected: Mapping[str, float] = field(default_factory=dict)
    start: float = 0.0

    def fit(self, module: nn.Module) -> Fit:
        """Train a copy of `module`, which stays as it is.

        Raises:
            InputError: the device is not there, or the saved state does not belong to this run.
            OutcomeError: the training diverged.
        """
        device, layout = chosen(self.settings.device), _layout(self.settings)
        if self.settings.shard and not all(hook.shards for hook in self.hooks):
            raise InputError("train.shard: this method needs whole weights in every process", hint="leave it out")
        # sharding itself brings a model to the device, block by block
        student = copied(module) if self._sharded else moved(module, device).to(memory_format=layout)
        teacher = None if self.teacher is None else moved(self.teacher, device).eval()
        together(device)
        with torch.random.fork_rng(devices=_own_random(device)):
            torch.manual_seed(self.seed)
            course = self._course(student)
            for hook in self.hooks:
                hook.attach(student, course)
            predictions = _merged(hook.predictions() for hook in self.hooks)
            run = self._started(student, course.example, device)
            saved = self._saved()
            if saved is not None:
                run.restore(saved)
            with accompanied(), synchronised(student), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Grad strides do not match")  # strides of dims of one
                self._train(run, Loss(self.settings, teacher), {**self.expected, **predictions})
            if self.saver is not None:
                self.saver.save(run.state())
            result = self._result(run, module)
            for hook in self.hooks:
                hook.finalize(result)
            if any(hook.settles for hook in self.hooks):
                seen = Drawn(self.data.train, self.seed, home(result), self.settings.augment)
                result = recalibrate(result, lambda: seen.images(CALIBRATION))
            outcomes = _merged(hook.outcomes() for hook in self.hooks)
        finished = placed(result, "cpu").to(memory_format=torch.contiguous_format).eval()
        learned = {name: p.requires_grad for name, p in module.named_parameters()}
        for name, parameter in finished.named_parameters():  # hooks freeze what stays
            parameter.requires_grad_(learned.get(name, True))
        by_layer = _merged(hook.by_layer() for hook in self.hooks)
        return Fit(finished, run.accuracies, predictions, outcomes, by_layer, saved is not None)

    def _saved(self) -> dict[str, Any] | None:
        """What an earlier attempt left: to all processes, or to none.

        Where a machine has failed, ``torchrun`` tells the others of new members and not of a restart.
        """
        if self.saver is None or not total(self.saver.resume):
            return None
        saved = self.saver.load()
        seen = round(total(saved is not None))
        if 0 < seen < world():
            problem = f"{self.saver.path} is seen by {seen} of {world()} processes"
            raise InputError(problem, hint="an output in a folder that all machines share")
        return saved

    @property
    def _sharded(self) -> bool:
        return self.settings.shard and world() > 1

    def _started(self, student: nn.Module, example: Example, device: torch.device) -> _Run:
        settings = self.settings
        if self._sharded:
            shard(student, device)
        forward, optimizer = _forward(student, settings, example), _optimizer(student, settings, self.hooks)
        average, own_random = _average(student, settings), _own_random(device)
        return _Run(student, forward, optimizer, average, self.hooks, settings.bf16, own_random, self._order.steps)

    @property
    def _order(self) -> Order:
        return Order(len(self.data.train), self.settings, self.seed, self.start)

    def _course(self, student: nn.Module) -> Course:
        order = self._order
        rates = [learning_rate(self.settings, step, order.steps, order.per_epoch) for step in range(order.steps)]
        drawn = Drawn(self.data.train, self.seed, home(student))
        example = Example((next(drawn.images(1)).cpu(),))
        return Course(rates, self.settings, drawn.images, drawn.labelled, order.count, example)

    def _train(self, run: _Run, loss_of: Loss, expected: Mapping[str, float]) -> None:
        settings, order = self.settings, self._order
        started = saved_at = time.monotonic()
        seen = 0
        for epoch, steps in order.after(run.step):
            end = run.step + len(steps)
            for parts in self._batches(run, epoch, steps, loss_of):
                rate = learning_rate(settings, run.step, order.steps, order.per_epoch)
                loss = _step(run, parts, rate)
                if not math.isfinite(loss):
                    if run.keeps_best:
                        return  # the best weights so far are the result
                    raise self._diverged(run.step, f"the loss is {loss}")
                seen += sum(len(part.batch.images) for part in parts) * world()
                finished = run.step == end
                if finished and len(order.held_out) and all(hook.validates for hook in run.hooks):
                    _validate(run, self.data, order.held_out)
                known = run.accuracies[-1] if run.accuracies else None
                speed = seen / (time.monotonic() - started)
                own = _merged(hook.figures() for hook in run.hooks)
                done = (epoch, order.epochs, run.step, order.steps)
                self.report(Tick(*done, loss, speed, known, finished, own, expected))
                if self.saver and self._agreed(time.monotonic() - saved_at >= self.saver.seconds):
                    self.saver.save(run.state())
                    saved_at = time.monotonic()

    def _result(self, run: _Run, module: nn.Module) -> nn.Module:
        """Whole tensors: the best, or the last ones, and then not even the last step may have made them infinite."""
        result = gathered(run.result, module)
        if run.keeps_best and run.best is not None:
            load(result, run.best)
        elif not all(bool(weight.isfinite().all()) for weight in result.parameters()):  # masks may hold -inf
            raise self._diverged(run.step, "a weight is not finite")
        return result

    def _diverged(self, step: int, sign: str) -> OutcomeError:
        hint = f"a smaller train.lr than {self.settings.lr:g}"
        return OutcomeError(f"training diverged: after {step} steps {sign}; nothing was written", hint=hint)

    def _agreed(self, due: bool) -> bool:
        """What one process finds due, all must do together, where each holds a part of what is saved."""
        return total(due) > 0 if self._sharded else due

    def _batches(self, run: _Run, epoch: int, steps: Sequence[Sequence[Part]], loss_of: Loss) -> Iterator[list[_Part]]:
        """What each of some steps of an epoch computes."""
        split, place = self.data.train, home(run.module)
        augment = (self.seed + 1) * 100_003 + epoch if self.settings.augment else None
        found = split.batches([part.indices for parts in steps for part in parts], augment)

        def task(images: Tensor, indices: Tensor) -> Tensor:
            return loss_of(run.forward, images, split.labels[indices].to(place.device))

        for parts in steps:
            ready = [next(found).to(place.device, place.dtype, memory_format=_layout(self.settings)) for _ in parts]
            yield [
                _Part(Batch(images, part.indices), partial(task, images, part.indices), part.weight)
                for part, images in zip(parts, ready, strict=True)
            ]


def _merged(said: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """What all hooks say, as one."""
    return {name: value for each in said for name, value in each.items()}


@dataclass(frozen=True)
class _Part:
    """A batch, the loss of the recipe on it, and how much it counts."""

    batch: Batch
    task: Callable[[], Tensor]
    weight: float


def _step(run: _Run, parts: Sequence[_Part], rate: float) -> float:
    """Accumulate the gradients of some parts, then move once. Returns the loss over all processes."""
    run.module.train()
    for group in run.optimizer.param_groups:
        if group.get("scheduled", True):
            group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    mean = 0.0
    for number, part in enumerate(parts, 1):
        with run.quiet(number < len(parts)), blamed("the model cannot be trained"):
            loss = _loss(run, part) * part.weight
            loss.backward()
        mean += float(loss.detach())
    run.optimizer.step()
    for hook in run.hooks:
        hook.after_step(run.module, run.step + 1)
    if run.average is not None:
        run.average.update_parameters(run.module)
    run.step += 1
    return total(mean) / world()


def _loss(run: _Run, part: _Part) -> Tensor:
    """Each hook in turn may add to the loss, or put another in its place."""
    task = part.task
    for hook in run.hooks:
        task = partial(hook.loss, task, run.forward, part.batch)
    with torch.autocast(part.batch.images.device.type, torch.bfloat16, enabled=run.bf16):
        return task()


def _validate(run: _Run, data: Data, held_out: Tensor) -> None:
    """Keep the weights where they are the best so far."""
    if is_sharded(run.module):  # a model in parts runs on all processes or on none: equally many batches for each
        now = accuracy(run.result, data.train, held_out)
    else:
        mine = share(held_out)
        now = total(accuracy(run.result, data.train, mine) * len(mine)) / len(held_out)
    if not run.accuracies or now >= max(run.accuracies):
        run.best = {name: t.detach().cpu().clone() for name, t in whole(stored(run.result)).items()}
    run.accuracies.append(now)


def _own_random(device: torch.device) -> list[torch.device]:
    """The device, where it has a random state of its own."""
    return [device] if device.type == "cuda" else []


def _layout(settings: Train) -> torch.memory_format:
    return torch.channels_last if settings.channels_last else torch.preserve_format


def _forward(module: nn.Module, settings: Train, example: Example) -> Callable[[Tensor], Any]:
    """What is called in training: compiled where asked, gradients averaged over all processes."""
    called: Any = torch.compile(module) if settings.compile else module
    if world() == 1 or is_sharded(module):
        return called  # type: ignore[no-any-return]
    learned = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    unused = bool(learned - record(module, example, train=True).used_params())
    return nn.parallel.DistributedDataParallel(called, find_unused_parameters=unused)


def _optimizer(module: nn.Module, settings: Train, hooks: Sequence[Hook]) -> torch.optim.Optimizer:
    """That of a hook, or else the recipe's: biases and norms are not decayed with AdamW; with SGD all are.

    Raises:
        InputError: all parameters are fixed.
    """
    brought = next((found for hook in hooks if (found := hook.optimizer(module, settings)) is not None), None)
    if brought is not None:
        return brought
    free = [p for p in module.parameters() if p.requires_grad]
    if not free:
        raise InputError("nothing can be trained: no parameter of the model requires a gradient")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            free, settings.lr, settings.momentum,
            weight_decay=settings.weight_decay, nesterov=settings.nesterov and settings.momentum > 0,
        )  # fmt: skip
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in free if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, settings.lr)


def _average(module: nn.Module, settings: Train) -> torch.optim.swa_utils.AveragedModel | None:
    """Of the weights after each step, with decay ``min(ema, (1 + n) / (10 + n))`` (TensorFlow's, with ``num_updates``).

    So a short run is no average of its start.
    """
    limit = settings.ema
    if limit is None:
        return None

    def step(averages: Any, weights: Any, count: Tensor | int) -> None:
        decay = min(limit, (1 + int(count)) / (10 + int(count)))
        torch.optim.swa_utils.get_ema_multi_avg_fn(decay)(averages, weights, count)

    return torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=step, use_buffers=True)
