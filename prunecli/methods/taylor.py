"""First-order Taylor expansion of the loss (Molchanov et al. 2019, arXiv 1906.10771, equation 8)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prunecli.methods.base import Evidence
from prunecli.methods.saliency import Saliencies, Saliency


class Taylor(Saliency):
    """Fields of ``method: {name: taylor}``.

    Attributes:
        images: how many training images the gradient is taken on.
    """

    name: Literal["taylor"]
    images: int = Field(512, ge=1)

    def saliencies(self, evidence: Evidence) -> Saliencies:
        """``(g w)^2``: the squared change of the loss where the weight goes, to first order."""
        from prunecli.methods.gradients import gradients

        found = gradients(evidence, self.images, self.name)
        return {n: (found.mean[n] * w).square() for n, w in found.weights.items()}
