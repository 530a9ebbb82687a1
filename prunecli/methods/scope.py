"""Making scores comparable between layers and channel groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

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


def slice_sums(saliencies: Mapping[str, Tensor], channels: Channels) -> NDArray[np.float64]:
    """(channels,) sums over every slice of a channel; biases and norms scale a channel, they do not carry it."""
    sums = np.zeros(channels.count)
    for slot in channels.slots:
        tensor = saliencies.get(slot.name)
        if tensor is not None:
            others = [dim for dim in range(tensor.ndim) if dim != slot.dim]
            np.add.at(sums, slot.channels, tensor.detach().double().sum(others).cpu().numpy())
    return sums


def ranks(scores: Tensor) -> Tensor:
    """The rank of every entry, in [0, 1); ties are broken by position."""
    order = scores.flatten().argsort(stable=True).argsort(stable=True)
    return order.reshape(scores.shape).double() / scores.numel()
