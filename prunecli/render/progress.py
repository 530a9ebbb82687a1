"""Progress of training on stderr: a live bar on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from prunecli.units import percent

if TYPE_CHECKING:
    from prunecli.train.loop import Tick


@contextmanager
def training_progress(console: Console) -> Iterator[Callable[[Tick], None]]:
    """Yield what `fit` reports to."""
    expectations = _Expectations(console)
    if console.quiet or not console.is_terminal:
        yield expectations.before(lambda tick: _line(console, tick))
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
        TextColumn("loss {task.fields[loss]}  top-1 {task.fields[accuracy]}"),
        TextColumn("{task.fields[speed]} images/s{task.fields[own]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=None, epoch="", loss="", accuracy="-", speed="", own="")
        yield expectations.before(lambda tick: bar.update(
            task, total=tick.steps, completed=tick.step, epoch=f"{tick.epoch + 1}/{tick.epochs}",
            loss=f"{tick.loss:.3f}", accuracy=_accuracy(tick), speed=f"{tick.images_per_second:.0f}",
            own=_own(tick),
        ))  # fmt: skip


class _Expectations:
    """Says what was predicted, once, before anything else is reported."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: set[str] = set()

    def before(self, report: Callable[[Tick], None]) -> Callable[[Tick], None]:
        """The same report with the predictions before it."""

        def both(tick: Tick) -> None:
            new = {name: value for name, value in tick.expected.items() if name not in self._said}
            self._said.update(new)
            if new:
                self._console.print(f"expected: {', '.join(f'{name} {value:.4g}' for name, value in new.items())}")
            report(tick)

        return both


def _line(console: Console, tick: Tick) -> None:
    if tick.finished_epoch:
        console.print(
            f"epoch {tick.epoch + 1}/{tick.epochs}  loss {tick.loss:.3f}  top-1 {_accuracy(tick)} (validation)  "
            f"{tick.images_per_second:.0f} images/s{_own(tick)}"
        )


def _own(tick: Tick) -> str:
    """The figures of the method."""
    return "".join(f"  {name} {value:.4g}" for name, value in tick.figures.items())


def _accuracy(tick: Tick) -> str:
    return "-" if tick.accuracy is None else percent(tick.accuracy)
