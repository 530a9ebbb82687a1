"""First-order Taylor expansion of the loss (Molchanov et al. 2019, arXiv 1906.10771, equation 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunecli.methods.saliency import GradientSaliency

if TYPE_CHECKING:
    from torch import Tensor


class Taylor(GradientSaliency):
    """Fields of ``method: {name: taylor}``."""

    name: Literal["taylor"]

    def saliency(self, weight: Tensor, mean: Tensor, squared: Tensor) -> Tensor:
        """``(g w)^2``: the squared change of the loss where the weight goes, to first order."""
        del squared
        return (mean * weight).square()
