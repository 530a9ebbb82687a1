"""Connection sensitivity (Lee et al. 2019, arXiv 1810.02340, equation 6, not normalised)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prunecli.methods.base import Evidence
from prunecli.methods.saliency import Saliencies, Saliency


class Snip(Saliency):
    """Fields of ``method: {name: snip}``.

    Attributes:
        images: how many training images the gradient is taken on.
    """

    name: Literal["snip"]
    images: int = Field(512, ge=1)

    def saliencies(self, evidence: Evidence) -> Saliencies:
        """``|g w|``."""
        from prunecli.methods.gradients import gradients

        found = gradients(evidence, self.images, self.name)
        return {n: (found.mean[n] * w).abs() for n, w in found.weights.items()}
