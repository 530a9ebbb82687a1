"""Wanda: weights times the norm of what they read (Sun et al. 2024, arXiv 2306.11695)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunecli.methods.base import Evidence
from prunecli.methods.saliency import Saliencies, Saliency

if TYPE_CHECKING:
    from torch import Tensor


class Wanda(Saliency):
    """Fields of ``method: {name: wanda}``.

    Attributes:
        images: how many training images the norms are taken on.
        by_output: compare the weights of each output only, as the paper does; it makes the same share of every
            output zero.
    """

    name: Literal["wanda"]
    images: int = Field(512, ge=1)
    by_output: bool = True

    def saliencies(self, evidence: Evidence) -> Saliencies:
        """``|w_ij| ||x_j||`` (equation 1); what no linear layer or convolution owns counts by its magnitude."""
        from prunecli.methods.activations import input_norms

        norms = input_norms(evidence, self.images, self.name)
        found = {}
        for name, weight in evidence.module.named_parameters():
            if weight.ndim > 1:
                own = norms.get(name.removesuffix(".weight"))
                found[name] = weight.detach().abs() * (1.0 if own is None else own)
        return found

    def weight_scores(self, evidence: Evidence, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The saliencies, or their rank within the row."""
        scores = super().weight_scores(evidence, weights)
        if not self.by_output:
            return scores
        rows = {name: score.flatten(1) for name, score in scores.items()}
        return {
            n: (row.argsort(dim=1, stable=True).argsort(dim=1, stable=True).double() / row.shape[1]).reshape_as(
                scores[n]
            )
            for n, row in rows.items()
        }
