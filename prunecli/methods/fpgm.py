"""Filter pruning via geometric median (He et al. 2019, arXiv 1811.00250): a filter that others stand for can go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prunecli.methods.base import Evidence, Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prunecli.graph.channels import Channels


class GeometricMedian(Method):
    """Fields of ``method: {name: fpgm}``.

    Attributes:
        scope: as for magnitude; the paper takes the same share from every layer.
    """

    name: Literal["fpgm"]
    structure: Literal["channel"] = "channel"
    scope: Literal["global", "layer"] = "layer"

    def channel_scores(self, evidence: Evidence, channels: Channels) -> NDArray[np.float64]:
        """The sum of distances to all other filters of a layer (equation 6), over the layers that write a channel."""
        import numpy as np
        import torch

        from prunecli.methods.scope import by_scope

        weights = dict(evidence.module.named_parameters())
        sums = np.zeros(channels.count)
        for slot in channels.slots:
            weight = weights.get(slot.name)
            if weight is not None and weight.ndim > 1 and slot.dim in channels.written_dims(slot.name):
                filters = weight.detach().double().movedim(slot.dim, 0).flatten(1)
                np.add.at(sums, slot.channels, torch.cdist(filters, filters).sum(1).cpu().numpy())
        return by_scope(sums, channels, self.scope)
