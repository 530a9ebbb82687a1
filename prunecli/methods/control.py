"""What makes a method that learns its own sparsity meet the one that was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

UPDATES = 100  # how often in a run the control looks
PAUSE = 10  # steps between two looks, at least
_HALVINGS = 50
MEASURED = 12  # halvings where each of them runs a network


@dataclass(frozen=True)
class Ramp:
    """A cubic way to the target (Zhu and Gupta 2017, arXiv 1710.01878, equation 1): most of it goes early.

    Attributes:
        target: reached at the end of the ramp.
        share: of the run, after which it ends.
        steps: of the run.
    """

    target: float
    share: float
    steps: int

    def due(self, step: int) -> bool:
        """Whether the control looks after this step."""
        return step % max(PAUSE, self.steps // UPDATES) == 0 or step == self.steps

    def at(self, step: int) -> float:
        """What should be reached after this step."""
        gone = min(1.0, step / (self.share * self.steps))
        return self.target * (1 - (1 - gone) ** 3)


def largest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """About the largest number in [low, high] at which something holds that is measured, and true at `low`."""
    if holds(high):
        return high
    for _ in range(MEASURED):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def bracket(holds: Callable[[float], bool], step: float, most: float) -> tuple[float, float]:
    """Two numbers, at the lower of which something holds, and at the higher not, as near to 0 as steps by 4 come.

    Where it holds nowhere or everywhere up to `most`, an end is `most`.
    """
    low, high = -step, step
    while low > -most and not holds(low):
        low, high = 4 * low, low
    while high < most and holds(high):
        low, high = high, 4 * high
    return low, high


def smallest(reached: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number in [low, high] at which something monotone is reached; `high` where it never is."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
