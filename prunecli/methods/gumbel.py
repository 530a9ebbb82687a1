"""Effective subnetworks with Gumbel-Softmax (Dupont et al. 2022, arXiv 2202.12986).

The weights stay as they are; what is learned is which of them to keep. Every weight, or every channel, has one logit;
each step samples a network with straight-through gradients, and every layer learns one factor for what is left of it.
In the paper the weights are random and how many are kept is left open; here trained weights start from the order of
their magnitudes, and a common offset of all logits meets the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from prunecli.methods.base import Method

if TYPE_CHECKING:
    from prunecli.methods.hook import Hook
    from prunecli.recipe.schema import Budget


LEARNING_RATES = {"weight": 50.0, "channel": 5.0}


class GumbelMasks(Method):
    """Fields of ``method: {name: gumbel}``.

    Attributes:
        init: ``magnitude`` starts from the rank of each weight or channel, ``zero`` from even chances.
        confidence: how far the ranks are apart at the start, as a factor on their logits.
        signed_constant: every weight becomes ``sign(w) std(w)`` of its layer first (+SC in the paper).
        tau: temperature of the gradients.
        lr: of the logits, with momentum 0.9; it stays. By default 50 for weights as in the paper, and 5 for channels,
            whose logits get the gradients of many weights.
        rescale_lr: of the factors.
        ramp: share of the run after which the budget is reached.
    """

    kind = "train"

    name: Literal["gumbel"]
    structure: Literal["weight", "channel"] = "weight"
    init: Literal["magnitude", "zero"] = "magnitude"
    confidence: float = Field(4.0, gt=0)
    signed_constant: bool = False
    tau: float = Field(1.0, gt=0)
    lr: float | None = Field(None, gt=0)
    rescale_lr: float = Field(1e-3, ge=0)
    ramp: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _alike(self) -> GumbelMasks:
        if self.signed_constant and (self.init, self.structure) != ("zero", "weight"):
            raise ValueError("weights of one size have no ranks to start from: init: zero, structure: weight")
        return self

    @property
    def rate(self) -> float:
        """The learning rate of the logits."""
        return self.lr or LEARNING_RATES[self.structure]

    @property
    def budget_units(self) -> tuple[str, ...]:
        """Zeros or channels; without a budget a weight stays where its chance is at least even."""
        return ("sparsity", "none") if self.structure == "weight" else ("flops", "params")

    def hook(self, weights: Sequence[str], budget: Budget | None) -> Hook:
        """Masks on the named weights, or on channels."""
        from prunecli.methods.gumbel_masks import ChannelMasks, WeightMasks

        if self.structure == "weight" or budget is None:
            return WeightMasks(self, weights, None if budget is None else budget.amount)
        return ChannelMasks(self, budget)
