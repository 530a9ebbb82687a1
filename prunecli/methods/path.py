"""The loss between two sets of weights of one network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunecli.graph.copying import copied
from prunecli.graph.tape import output_tensors
from prunecli.graph.tensors import stored
from prunecli.surgery.recover import recalibrate

POINTS = 9


@torch.no_grad()
def barrier(first: nn.Module, second: nn.Module, images: Sequence[tuple[Tensor, Tensor]]) -> float:
    """By how much the loss on the straight path rises above its larger end; 0 where both lie in one valley.

    Batch norm takes new statistics at every point, the ends included, since those of the ends fit nothing between.

    Args:
        first, second: networks of one architecture.
        images: (N, C, H, W) with labels (N,), in batches.
    """
    start, end = stored(first), stored(second)
    losses = []
    for point in torch.linspace(0, 1, POINTS).tolist():
        between = copied(first)
        mixed = {
            name: tensor.lerp(end[name].to(tensor), point) if tensor.is_floating_point() else tensor
            for name, tensor in start.items()
        }
        between.load_state_dict(between.state_dict() | mixed)
        settled = recalibrate(between, lambda: (x for x, _ in images))
        found = [F.cross_entropy(output_tensors(settled(x))[0].float(), y) * len(y) for x, y in images]
        losses.append(float(torch.stack(found).sum()) / sum(len(y) for _, y in images))
    return max(0.0, max(losses) - max(losses[0], losses[-1]))
