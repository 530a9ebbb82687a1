"""Fire Together Wire Together (Elkerdawy et al. 2022, arXiv 2110.08232): dynamic pruning with predicted masks.

Every gated convolution gets a head that sees the mean of what comes in and says which of its channels this image
needs. Heads learn from the network itself: the channels that together hold a share r of the activation. r is chosen so
that the network would meet the budget with perfect heads; while training, all heads are shifted together so that it
does with those that are there, and at the end by the number that meets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunecli.methods.base import Method

if TYPE_CHECKING:
    from prunecli.methods.hook import Hook
    from prunecli.recipe.schema import Budget


class FireTogether(Method):
    """Fields of ``method: {name: ftwt}``.

    Attributes:
        r: share of the activation that the channels of an image hold; without it the budget decides.
        mode: ``decoupled`` heads learn from what the network gives them; ``joint`` heads teach the network as well.
        head_lr: of the heads, which have momentum 0.9 and no weight decay.
        heads_until: share of the run after which the heads stay as they are.
        images: on which FLOPs are predicted before, and measured after.
    """

    kind = "dynamic"

    name: Literal["ftwt"]
    r: float | None = Field(None, gt=0, le=1)
    mode: Literal["decoupled", "joint"] = "decoupled"
    head_lr: float = Field(0.1, gt=0)
    heads_until: float = Field(0.5, gt=0, le=1)
    images: int = Field(1024, ge=64)

    @property
    def budget_units(self) -> tuple[str, ...]:
        """FLOPs in the mean over the images, unless r is given."""
        return ("flops",) if self.r is None else ()

    def hook(self, weights: Sequence[str], budget: Budget | None) -> Hook:
        """Gates on every convolution that can have one."""
        del weights
        from prunecli.methods.gating import Gating

        return Gating(self, None if budget is None else budget.amount)
