"""Gradients of the loss on a few training images: what first- and second-order criteria look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunecli.errors import blamed
from prunecli.graph.copying import copied
from prunecli.graph.tape import output_tensors
from prunecli.methods.base import Evidence


@dataclass(frozen=True)
class Gradients:
    """For each weight with two or more dims: its value, the mean gradient and the mean squared one over batches."""

    weights: dict[str, Tensor]
    mean: dict[str, Tensor]
    squared: dict[str, Tensor]


def gradients(evidence: Evidence, images: int, method: str) -> Gradients:
    """Cross entropy in eval mode, so that no batch-norm statistic moves.

    Args:
        evidence: gives the model and the images.
        images: how many.
        method: for the message where there are none.

    Raises:
        InputError: no data is given, or the model has no gradients.
    """
    module = copied(evidence.module).eval()
    weights = {n: w for n, w in module.named_parameters() if w.ndim > 1 and w.is_floating_point()}
    mean = {n: torch.zeros_like(w) for n, w in weights.items()}
    squared = {n: torch.zeros_like(w) for n, w in weights.items()}
    count = 0
    with torch.enable_grad(), blamed("the model has no gradients"):
        for pictures, labels in evidence.images(images, method):
            loss = F.cross_entropy(output_tensors(module(pictures))[0], labels)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    mean[name] += gradient
                    squared[name] += gradient.square()
            count += 1
    scale = 1 / max(1, count)
    return Gradients(
        {n: w.detach() for n, w in weights.items()},
        {n: g * scale for n, g in mean.items()},
        {n: g * scale for n, g in squared.items()},
    )
