"""Runs that are stopped on the way and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from prunecli.train.loop import Tick
from prunecli.train.state import Saver

Result_co = TypeVar("Result_co", covariant=True)


class Run(Protocol[Result_co]):
    """Trains with some more fields of a `Trainer`."""

    def __call__(self, **options: object) -> Result_co:
        """What the run is judged by."""


class Stopped(Exception):
    pass


def continued(run: Run[Result_co], folder: Path, step: int) -> Result_co:
    """Stop a run after a step, whose state is saved, and let another one go on from there."""

    def stop(tick: Tick) -> None:
        if tick.step == step:
            raise Stopped

    with pytest.raises(Stopped):
        run(saver=Saver(folder / "state", "it", seconds=0), report=stop)
    return run(saver=Saver(folder / "state", "it", resume=True, seconds=1e9))
