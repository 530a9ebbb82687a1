"""Soft Threshold Weight Reparameterization (Kusupati et al. 2020, arXiv 2002.03231).

Every layer's weight is ``S(W, g(s)) = sign(W) relu(|W| - g(s))`` with one learned s and g the sigmoid. The paper steers
sparsity by the decay of s alone; here a common offset is added to every s and set, step by step, so that the whole
network follows a cubic schedule and ends at the sparsity that was asked for, while each s goes on to learn how the
layers share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunecli.methods.base import Method

if TYPE_CHECKING:
    from prunecli.methods.hook import Hook


class SoftThresholds(Method):
    """Fields of ``method: {name: str}``.

    Attributes:
        s_init: where every s starts; inserting the thresholds changes no output.
        ramp: share of the run after which the asked sparsity is reached.
    """

    name: Literal["str"]
    structure: Literal["weight"] = "weight"
    s_init: float = Field(-10.0, lt=0)
    ramp: float = Field(0.75, gt=0, le=1)

    @property
    def budget_units(self) -> tuple[str, ...]:
        """Zeros are what it makes."""
        return ("sparsity",)

    def hook(self, weights: Sequence[str], amount: float) -> Hook:
        """Thresholds on the named weights, up to a sparsity of `amount`."""
        from prunecli.methods.thresholds import Thresholds

        return Thresholds(weights, amount, self.s_init, self.ramp)
