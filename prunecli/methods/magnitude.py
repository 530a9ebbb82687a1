"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626), for channels (Li et al. 2017, arXiv 1608.08710) or weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunecli.methods.base import Evidence
from prunecli.methods.saliency import Saliencies, Saliency

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Magnitude(Saliency):
    """Fields of ``method: {name: magnitude}``.

    Attributes:
        p: the norm, 1 or 2; a channel's score is the p-norm over all its slices.
    """

    name: Literal["magnitude"]
    p: Literal[1, 2] = 2

    def saliencies(self, evidence: Evidence) -> Saliencies:
        """``|w|^p``."""
        return {n: w.detach().abs().pow(self.p) for n, w in evidence.module.named_parameters() if w.ndim > 1}

    def of_channels(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The p-norm."""
        return sums ** (1 / self.p)
