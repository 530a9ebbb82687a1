"""Making scores comparable between channel groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prunecli.graph.channels import Channels


def by_scope(scores: NDArray[np.float64], channels: Channels, scope: str) -> NDArray[np.float64]:
    """``global``: divided by the group's mean. ``layer``: the rank within the group, in (0, 1]."""
    result = np.zeros_like(scores)
    for group in channels.groups:
        own = scores[group.channels]
        if scope == "layer":
            result[group.channels] = (own.argsort(kind="stable").argsort(kind="stable") + 1) / len(own)
        else:
            result[group.channels] = own / (own.mean() or 1.0)
    return result
