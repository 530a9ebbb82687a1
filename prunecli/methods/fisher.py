"""Diagonal Fisher information (Theis et al. 2018, arXiv 1801.05787, equation 5)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prunecli.methods.base import Evidence
from prunecli.methods.saliency import Saliencies, Saliency


class Fisher(Saliency):
    """Fields of ``method: {name: fisher}``.

    Attributes:
        images: how many training images the gradient is taken on.
    """

    name: Literal["fisher"]
    images: int = Field(512, ge=1)

    def saliencies(self, evidence: Evidence) -> Saliencies:
        """``w^2 E[g^2] / 2``: the expected rise of the loss where the weight goes, to second order."""
        from prunecli.methods.gradients import gradients

        found = gradients(evidence, self.images, self.name)
        return {n: w.square() * found.squared[n] / 2 for n, w in found.weights.items()}
