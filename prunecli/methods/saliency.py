"""Methods that give every weight a saliency: a channel's is the sum over every slice that belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prunecli.methods.base import Evidence, Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from prunecli.graph.channels import Channels

Saliencies = dict[str, "Tensor"]


class Saliency(Method):
    """Base of methods that score single weights.

    Attributes:
        scope: global compares all layers (channels: each divided by its group's mean); layer takes the same share
            from every layer.
    """

    structure: Literal["channel", "weight"] = "channel"
    scope: Literal["global", "layer"] = "global"

    def saliencies(self, evidence: Evidence) -> Saliencies:
        """For every weight with two or more dims how much it matters: same shape, not negative."""
        raise NotImplementedError(f"{self.name} scores no weights")

    def of_channels(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(channels,) scores from the sums over their slices."""
        return sums

    def channel_scores(self, evidence: Evidence, channels: Channels) -> NDArray[np.float64]:
        """Sums over the filters that write a channel and the weights that read it, made comparable by `scope`."""
        from prunecli.methods.scope import by_scope, slice_sums

        sums = slice_sums(self.saliencies(evidence), channels)
        return by_scope(self.of_channels(sums), channels, self.scope)

    def weight_scores(self, evidence: Evidence, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The saliencies, or their rank within the layer."""
        from prunecli.methods.scope import ranks

        found = self.saliencies(evidence)
        return {name: ranks(found[name]) if self.scope == "layer" else found[name] for name in weights}


class GradientSaliency(Saliency):
    """Base of methods that look at the gradients of the loss.

    Attributes:
        images: how many training images they are taken on.
    """

    images: int = Field(512, ge=1)

    def saliency(self, weight: Tensor, mean: Tensor, squared: Tensor) -> Tensor:
        """From a weight, its mean gradient and the mean of the squared ones, all of one shape."""
        raise NotImplementedError(f"{self.name} does not say what gradients mean")

    def saliencies(self, evidence: Evidence) -> Saliencies:
        """`saliency` of every weight."""
        from prunecli.methods.gradients import gradients

        found = gradients(evidence, self.images, self.name)
        return {n: self.saliency(w, found.mean[n], found.squared[n]) for n, w in found.weights.items()}
