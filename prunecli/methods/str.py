"""Soft Threshold Weight Reparameterization (Kusupati et al. 2020, arXiv 2002.03231).

Every layer's weight is ``S(W, g(s)) = sign(W) relu(|W| - g(s))`` with one learned s and g the sigmoid. The paper steers
sparsity by the decay of s alone; here all thresholds are raised by one offset, now and then, far enough for a cubic
schedule that ends at the sparsity that was asked for: what they catch is zero from then on, what they do not catch is
not shrunk, and each s goes on to learn how the layers share it. Without a budget it is the paper's own control, after a
check that the thresholds will wake up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunecli.methods.base import Method

if TYPE_CHECKING:
    from prunecli.methods.hook import Hook
    from prunecli.recipe.schema import Budget


class SoftThresholds(Method):
    """Fields of ``method: {name: str}``.

    Attributes:
        structure: ``channel`` puts the thresholds on the scales of batch norms, ``rank`` on the singular values of
            linear and recurrent weights, which become two smaller ones.
        s_init: where every s starts; inserting the thresholds changes no output.
        ramp: share of the run after which the asked sparsity is reached.
    """

    kind = "train"

    name: Literal["str"]
    structure: Literal["weight", "channel", "rank"] = "weight"
    s_init: float = Field(-4.0, lt=0)
    ramp: float = Field(0.75, gt=0, le=1)

    @property
    def budget_units(self) -> tuple[str, ...]:
        """Zeros are what it makes; without a budget the decay decides how many, as in the paper."""
        return {"weight": ("sparsity", "none"), "channel": ("flops", "params"), "rank": ("params",)}[self.structure]

    def hook(self, weights: Sequence[str], budget: Budget | None) -> Hook:
        """Thresholds on the named weights or on batch norms, up to the budget."""
        from prunecli.methods.low_rank import LearnedRanks
        from prunecli.methods.norm_thresholds import NormThresholds
        from prunecli.methods.thresholds import Thresholds

        if self.structure == "channel" and budget is not None:
            return NormThresholds(self, budget)
        if self.structure == "rank" and budget is not None:
            return LearnedRanks(self, weights, budget)
        sparsity = None if budget is None else budget.amount
        return Thresholds(weights, sparsity, self.s_init, self.ramp)
