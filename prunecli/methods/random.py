"""Random pruning: the floor that every other method must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunecli.methods.base import Evidence, Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from prunecli.graph.channels import Channels


class Random(Method):
    """Uniform scores; the recipe's seed makes them repeatable."""

    name: Literal["random"]
    structure: Literal["channel", "weight"] = "channel"

    def channel_scores(self, evidence: Evidence, channels: Channels) -> NDArray[np.float64]:
        """Uniform in [0, 1)."""
        import numpy as np

        return np.random.default_rng(evidence.seed).random(channels.count)

    def weight_scores(self, evidence: Evidence, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Uniform in [0, 1)."""
        import torch

        generator = torch.Generator().manual_seed(evidence.seed)
        return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
