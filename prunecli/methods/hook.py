"""What a method adds to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import Journal
from prunecli.graph.tape import Example
from prunecli.recipe.schema import Train


@dataclass(frozen=True)
class Course:
    """What a hook is told of the run that it takes part in.

    Attributes:
        rates: learning rate of every optimizer step.
        settings: of the recipe.
        images: so many training images without augmentation, in batches.
        labelled: the same with their labels.
        count: of all training images, those that are held out included.
        example: one input of the model, on the CPU.
    """

    rates: Sequence[float]
    settings: Train
    images: Callable[[int], Iterator[Tensor]]
    labelled: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    count: int
    example: Example

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self.rates)


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W) and where they are in the data, (N,)."""

    images: Tensor
    indices: Tensor


class Hook:
    """The base adds nothing.

    Attributes:
        keeps_best: whether the weights that validate best are the result; a method that is done only at the end
            takes the last ones.
        settles: whether batch norm takes the statistics of the finished network, which is not the one it has seen.
        validates: whether what the model answers in training is a class.
        shards: whether it works where each process holds only a part of every weight.
    """

    keeps_best = True
    settles = False
    validates = True
    shards = False

    def attach(self, module: nn.Module, course: Course) -> None:
        """Called once, before the optimizer is made: wrap parameters, freeze what stays."""

    def optimizer(self, module: nn.Module, settings: Train) -> torch.optim.Optimizer | None:
        """An optimizer in place of the recipe's. Groups with ``scheduled=False`` keep their own learning rate."""
        del module, settings
        return None

    def loss(self, task: Callable[[], Tensor], forward: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """Of one batch; `task` computes that of the recipe, and is the only one that reads labels."""
        del forward, batch
        return task()

    def after_step(self, module: nn.Module, step: int) -> None:
        """Called after optimizer step number `step`, the first being 1."""

    def figures(self) -> Mapping[str, float]:
        """What progress shows beside the loss."""
        return {}

    def predictions(self) -> Mapping[str, float]:
        """What can be said before the first step; asked after `attach`."""
        return {}

    def finalize(self, module: nn.Module) -> None:
        """Called once, at the end: leave a plain model."""

    @property
    def journal(self) -> Journal:
        """What the model has become that a plain one is not."""
        return Journal()

    def outcomes(self) -> Mapping[str, float]:
        """What came of the predictions, and what else is worth a report; asked after `finalize`."""
        return {}

    def by_layer(self) -> Mapping[str, Mapping[str, float]]:
        """What is worth a report of single weights: {weight: {name: value}}; asked after `finalize`."""
        return {}

    def state(self) -> dict[str, Any]:
        """What must be saved to continue, beside the module: tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
