"""The loss of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunecli.graph.tape import output_tensors
from prunecli.recipe.schema import Distill, Train

AUXILIARY = 0.3  # weight of auxiliary heads (Szegedy et al. 2015)


@dataclass(frozen=True)
class Loss:
    """Cross entropy, plus auxiliary heads and distillation where there are any."""

    settings: Train
    teacher: nn.Module | None

    def __call__(self, forward: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> Tensor:
        """Mean over the images (N, C, H, W) with their labels (N,)."""
        main, *others = output_tensors(forward(images))
        loss = self._classify(main, labels)
        for other in (o for o in others if o.shape == main.shape):
            loss = loss + AUXILIARY * self._classify(other, labels)
        return loss if self.teacher is None else self._distil(loss, main, images, self.teacher)

    def _classify(self, found: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(_full(found), labels, label_smoothing=self.settings.label_smoothing)

    def _distil(self, loss: Tensor, found: Tensor, images: Tensor, teacher: nn.Module) -> Tensor:
        distill = self.settings.distill or Distill()
        weight, heat = distill.weight, distill.temperature
        with torch.no_grad():
            target = F.log_softmax(_full(output_tensors(teacher(images))[0]) / heat, 1)
        divergence = F.kl_div(F.log_softmax(_full(found) / heat, 1), target, log_target=True, reduction="batchmean")
        return (1 - weight) * loss + weight * heat**2 * divergence


def _full(found: Tensor) -> Tensor:
    """Half precision is too coarse for a loss."""
    return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found
