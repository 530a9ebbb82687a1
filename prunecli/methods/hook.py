"""What a method adds to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class Hook:
    """The base adds nothing.

    Attributes:
        keeps_best: whether the weights that validate best are the result; a method that is done only at the end
            takes the last ones.
    """

    keeps_best = True

    def attach(self, module: nn.Module, steps: int) -> None:
        """Called once, before the optimizer is made: wrap parameters. `steps` is the length of the whole run."""

    def after_step(self, module: nn.Module, step: int) -> None:
        """Called after optimizer step number `step`, the first being 1."""

    def figures(self) -> Mapping[str, float]:
        """What progress shows beside the loss."""
        return {}

    def finalize(self, module: nn.Module) -> None:
        """Called once, at the end: leave a plain model."""

    def state(self) -> dict[str, Any]:
        """What must be saved to continue, beside the module: tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
