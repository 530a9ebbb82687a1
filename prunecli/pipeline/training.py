"""The trainings of one run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from prunecli.errors import InputError
from prunecli.methods.hook import Hook
from prunecli.ranks import rank, restarted
from prunecli.recipe.schema import Train
from prunecli.train.data import Data
from prunecli.train.loop import Fit, Report, Trainer
from prunecli.train.state import Saver
from prunecli.train.zeros import KeepZeros


@dataclass
class Training:
    """Trains as often as it is asked to, and leaves a resumable state for each time.

    A run that was stopped does everything again; a training that was done already ends at once, with what it gave.

    Attributes:
        data: of the recipe.
        seed: of the recipe.
        teacher: distil from it.
        output: the file of the run; states lie beside it until it is written.
        identity: of the run.
        resume: continue from states that are there.
        report: progress.
        expected: what can be said of the whole run before it starts, by name.
        notes: what the user should know.
    """

    data: Data | None
    seed: int
    teacher: nn.Module | None
    output: Path
    identity: str
    resume: bool
    report: Report
    expected: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _done: int = 0

    def fit(self, module: nn.Module, settings: Train, hooks: Sequence[Hook], start: float = 0.0) -> Fit:
        """Train a copy of `module`; with `start`, as what comes after so many epochs.

        Raises:
            InputError: no data is given.
        """
        if self.data is None:
            raise InputError("training needs images, but no data is given", hint="data: in the recipe, or --data")
        identity, resume = f"{self.identity} {self._done}", self.resume or restarted()
        saver = Saver(self._state(self._done), identity, resume, settings.save_seconds)
        self._done += 1
        fit = self._trainer(settings, hooks, saver, start).fit(module)
        if fit.continued:
            self.notes = ["continued from a saved state"]
        return fit

    def _trainer(self, settings: Train, hooks: Sequence[Hook], saver: Saver, start: float) -> Trainer:
        assert self.data is not None
        return Trainer(self.data, settings, self.seed, self.teacher, hooks, saver, self.report, self.expected, start)

    def keeping_zeros(self, module: nn.Module) -> Callable[[Train, Hook], nn.Module]:
        """What trains a copy of `module` with one hook; zeros stay zero."""
        return lambda settings, hook: self.fit(module, settings, [hook, KeepZeros(module)]).module

    def forget(self) -> None:
        """Remove the states, once the output is written; the process that writes it knows when."""
        for number in range(self._done if rank() == 0 else 0):
            self._state(number).unlink(missing_ok=True)

    def _state(self, number: int) -> Path:
        return self.output.with_name(f"{self.output.name}{f'.{number}' if number else ''}.resume")
