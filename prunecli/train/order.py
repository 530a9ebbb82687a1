"""Which images each optimizer step sees, as a pure function of (number of images, settings, seed, world)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunecli.ranks import rank, world
from prunecli.recipe.schema import Train


@dataclass(frozen=True)
class Part:
    """What one process computes at once: indices, and what its mean loss counts in the mean over all processes."""

    indices: Tensor
    weight: float


@dataclass(frozen=True)
class Order:
    """The order of the images.

    A step takes `batch_size` images on each process, as often as `accumulate` says; they are consecutive pieces of
    one shuffled list, so that two processes see what one sees with the doubled batch.

    Attributes:
        count: number of images.
        settings: of the recipe.
        seed: of shuffling, and of what is held out.
        start: epochs that came before, where a run trains in parts: the order goes on where the last part ended.
    """

    count: int
    settings: Train
    seed: int
    start: float = 0.0

    @cached_property
    def _halves(self) -> tuple[Tensor, Tensor]:
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed))
        held_out = round(self.count * self.settings.validation)
        return order[held_out:].sort().values, order[:held_out].sort().values

    @property
    def held_out(self) -> Tensor:
        """Indices to validate on."""
        return self._halves[1]

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of one epoch; a rest with less than one image for each part is left out."""
        whole, rest = divmod(len(self._halves[0]), self._size)
        return max(1, whole + (rest >= self._parts))

    @property
    def steps(self) -> int:
        """Optimizer steps of this training, one at least; those of parts add up to those of the whole."""
        epochs = self.settings.epochs
        return max(1, self._steps_in(self.start + epochs) - self._before) if epochs else 0

    @property
    def epochs(self) -> int:
        """How many epochs there are with those that came before; the last may be a part of one."""
        return -(-(self._before + self.steps) // self.per_epoch)

    def after(self, step: int) -> Iterator[tuple[int, list[list[Part]]]]:
        """What is left to do after so many steps: epochs, and for each of their steps the parts of this process."""
        while step < self.steps:
            number, position = divmod(self._before + step, self.per_epoch)
            steps = self.epoch(number)[position:][: self.steps - step]
            yield number, steps
            step += len(steps)

    def epoch(self, number: int) -> list[list[Part]]:
        """For each step of an epoch the parts of this process."""
        kept = self._halves[0]
        generator = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + number)
        shuffled = kept[torch.randperm(len(kept), generator=generator)]
        steps = []
        for chosen in shuffled.split(self._size)[: self.per_epoch]:
            mine = chosen.tensor_split(self._parts)[rank() :: world()]
            steps.append([Part(indices, len(indices) * world() / len(chosen)) for indices in mine])
        return steps

    @property
    def _before(self) -> int:
        """Optimizer steps that came before."""
        return self._steps_in(self.start)

    def _steps_in(self, epochs: float) -> int:
        """Optimizer steps; halves go up, also those that rounding errors hide, so that parts meet where they end."""
        return math.floor(epochs * self.per_epoch + 0.5 + 1e-6)

    @property
    def _parts(self) -> int:
        return world() * self.settings.accumulate

    @property
    def _size(self) -> int:
        return self.settings.batch_size * self._parts
