"""Network slimming: the scale of batch norm says which channels matter (Liu et al. 2017, arXiv 1708.06519)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunecli.errors import InputError
from prunecli.methods.base import Evidence, Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prunecli.graph.channels import Channels


class BatchNormScale(Method):
    """Fields of ``method: {name: batchnorm}``. Channels that no batch norm scales stay."""

    name: Literal["batchnorm"]
    structure: Literal["channel"] = "channel"

    def channel_scores(self, evidence: Evidence, channels: Channels) -> NDArray[np.float64]:
        """The mean of ``|gamma|`` over the norms that scale a channel, compared over the whole network.

        Raises:
            InputError: the model has no batch norm with a scale.
        """
        import numpy as np
        from torch import nn

        scales = {
            f"{name}.weight": part.weight.detach().double().abs().cpu().numpy()
            for name, part in evidence.module.named_modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine
        }
        if not scales:
            raise InputError(
                "method batchnorm: the model has no batch norm with a scale", hint="method: {name: magnitude}"
            )
        sums, counts = np.zeros(channels.count), np.zeros(channels.count)
        for slot in channels.slots:
            if slot.name in scales:
                np.add.at(sums, slot.channels, scales[slot.name])
                np.add.at(counts, slot.channels, 1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
