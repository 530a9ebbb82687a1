"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626), for channels (Li et al. 2017, arXiv 1608.08710) or weights.

A channel's score is the p-norm over every slice that belongs to it: the filters that write it and the
weights that read it, in all layers it is coupled to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunecli.methods.base import Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from prunecli.graph.channels import Channels


class Magnitude(Method):
    """Fields of ``method: {name: magnitude}``.

    Attributes:
        p: the norm, 1 or 2.
        scope: global compares channels of all groups, each divided by its group's mean;
            layer takes the same share from every group.
    """

    name: Literal["magnitude"]
    structure: Literal["channel", "weight"] = "channel"
    p: Literal[1, 2] = 2
    scope: Literal["global", "layer"] = "global"

    def channel_scores(self, module: nn.Module, channels: Channels, seed: int) -> NDArray[np.float64]:
        """``(sum over slices of |w|^p)^(1/p)``, made comparable by `scope`."""
        import numpy as np

        from prunecli.methods.scope import by_scope

        powers = np.zeros(channels.count)
        tensors = dict(module.named_parameters())
        for slot in channels.slots:
            tensor = tensors.get(slot.name)
            if tensor is None or tensor.ndim < 2:  # biases and norms scale the channel, they do not carry it
                continue
            others = [d for d in range(tensor.ndim) if d != slot.dim]
            slices = tensor.detach().double().abs().pow(self.p).sum(others)
            np.add.at(powers, slot.channels, slices.numpy())
        return by_scope(powers ** (1 / self.p), channels, self.scope)

    def weight_scores(self, weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """``|w|``, or its rank within the layer."""
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
        if self.scope == "layer":
            return {
                n: s.flatten().argsort(stable=True).argsort(stable=True).reshape(s.shape).double() / s.numel()
                for n, s in scores.items()
            }
        return scores
