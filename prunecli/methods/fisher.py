"""Diagonal Fisher information (Theis et al. 2018, arXiv 1801.05787, equation 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunecli.methods.saliency import GradientSaliency

if TYPE_CHECKING:
    from torch import Tensor


class Fisher(GradientSaliency):
    """Fields of ``method: {name: fisher}``."""

    name: Literal["fisher"]

    def saliency(self, weight: Tensor, mean: Tensor, squared: Tensor) -> Tensor:
        """``w^2 E[g^2] / 2``: the expected rise of the loss where the weight goes, to second order."""
        del mean
        return weight.square() * squared / 2
