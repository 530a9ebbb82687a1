"""Directional pruning with gRDA (Chao et al. 2020, arXiv 2006.09358).

Weights move towards zero along the flat directions of the loss: an optimizer keeps the sum of all gradients and shows
the network what a growing soft threshold leaves of it. The paper chooses the scale c of the threshold by trial; here
it is found for the sparsity that was asked, and corrected as training goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunecli.methods.base import Method

if TYPE_CHECKING:
    from prunecli.methods.hook import Hook
    from prunecli.recipe.schema import Budget


class DirectionalPruning(Method):
    """Fields of ``method: {name: grda}``.

    The recipe's learning rate is that of SGD without momentum, and there is no weight decay.

    Attributes:
        c: scale of the threshold; without it the budget decides.
        mu: how fast the threshold grows with the number of steps.
        scanned: training images on which the loss between the model before and after is scanned; 0 leaves it out.
    """

    kind = "train"

    name: Literal["grda"]
    structure: Literal["weight"] = "weight"
    c: float | None = Field(None, gt=0)
    mu: float = Field(0.55, gt=0, lt=1)
    scanned: int = Field(512, ge=0)

    @property
    def budget_units(self) -> tuple[str, ...]:
        """A sparsity, unless `c` is given."""
        return ("sparsity",) if self.c is None else ()

    def hook(self, weights: Sequence[str], budget: Budget | None) -> Hook:
        """The optimizer on the named weights."""
        from prunecli.methods.dual_averaging import DualAveraging

        sparsity = None if budget is None else budget.amount
        return DualAveraging(weights, sparsity, self.c, self.mu, self.scanned)
