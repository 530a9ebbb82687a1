"""Connection sensitivity (Lee et al. 2019, arXiv 1810.02340, equation 6, not normalised)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunecli.methods.saliency import GradientSaliency

if TYPE_CHECKING:
    from torch import Tensor


class Snip(GradientSaliency):
    """Fields of ``method: {name: snip}``."""

    name: Literal["snip"]

    def saliency(self, weight: Tensor, mean: Tensor, squared: Tensor) -> Tensor:
        """``|g w|``."""
        del squared
        return (mean * weight).abs()
