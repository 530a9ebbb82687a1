"""Pretext tasks: what a network can be trained for without labels. A new last layer answers, and goes at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunecli.collectives import of_all, share
from prunecli.errors import InputError
from prunecli.graph.tape import Example, output_tensors, record
from prunecli.graph.tensors import home
from prunecli.methods.hook import Batch, Course, Hook
from prunecli.ranks import world

EMBEDDING = 128
MARGIN = 0.5  # of the triplet loss (Doersch and Zisserman 2017)
HEAT = 0.07  # of the softmax over instances (Wu et al. 2018)
BANK_MOMENTUM = 0.5
OTHERS = 4096  # at most so many are told from an image


def head_of(module: nn.Module, example: Example) -> str:
    """Path of the layer that answers: the linear one that runs last, or the last convolution where there is none.

    Raises:
        InputError: there is neither.
    """
    ran = [op.module for op in reversed(record(module, example).live_ops())]
    for kind in (nn.Linear, nn.Conv2d):
        found = next((path for path in ran if isinstance(module.get_submodule(path), kind)), None)
        if found is not None:
            return found
    raise InputError("the model has no last layer to put a pretext task on", hint="a classifier with a linear layer")


class Labels(Hook):
    """The task of the recipe itself: what masks that are found without labels are compared with."""


class Pretext(Hook):
    """Base of tasks with an answer of their own.

    Attributes:
        outputs: width of the answer.
    """

    keeps_best = False
    validates = False
    outputs = EMBEDDING

    def attach(self, module: nn.Module, course: Course) -> None:
        """Put a new last layer in the place of the old one."""
        self._path = head_of(module, course.example)
        self._head = module.get_submodule(self._path)
        module.set_submodule(self._path, answering(self._head, self.outputs))

    def finalize(self, module: nn.Module) -> None:
        """Put the old layer back, as it was."""
        module.set_submodule(self._path, self._head)

    def embedding(self, forward: Callable[[Tensor], Any], images: Tensor) -> Tensor:
        """(N, outputs) of length 1."""
        return F.normalize(output_tensors(forward(images))[0].flatten(1).float(), dim=1)


def answering(head: Any, outputs: int) -> nn.Module:
    """A new layer that reads what `head` reads."""
    new: nn.Module
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, outputs)
    else:
        new = nn.Conv2d(head.in_channels, outputs, head.kernel_size, head.stride, head.padding)
    return new.to(head.weight.device, head.weight.dtype)


class Rotation(Pretext):
    """By how many quarter turns is the image rotated? All four of every image come in one batch."""

    outputs = 4

    def loss(self, task: Callable[[], Tensor], forward: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """Cross entropy over the four answers.

        Raises:
            InputError: the images are not square.
        """
        del task
        turned, answers = quarter_turns(batch.images)
        return F.cross_entropy(output_tensors(forward(turned))[0].flatten(1).float(), answers)


def quarter_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    """(4 N, C, S, S) with the number of turns, (4 N,).

    Raises:
        InputError: the images are not square.
    """
    if images.shape[2] != images.shape[3]:
        raise InputError("rotation needs square images", hint="method.objective: exemplar")
    turned = torch.cat([images.rot90(quarter, (2, 3)) for quarter in range(4)])
    return turned, torch.arange(4, device=images.device).repeat_interleave(len(images))


class Exemplar(Pretext):
    """Two views of an image are alike, the next image is not: triplet margin loss on the distance."""

    def loss(self, task: Callable[[], Tensor], forward: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """``relu(margin + d(a, p) - d(a, n))``, squared distances, mean over the images."""
        del task
        both = self.embedding(forward, torch.cat([view(batch.images), view(batch.images)]))
        anchors, positives = both.chunk(2)
        negatives = positives.roll(1, 0)
        apart = (anchors - positives).square().sum(1) - (anchors - negatives).square().sum(1)
        return F.relu(MARGIN + apart).mean()


def view(images: Tensor) -> Tensor:
    """Images (N, C, H, W) turned by up to 15 degrees, shifted, scaled, mirrored, brighter or darker."""

    def draw(low: float, high: float) -> Tensor:
        """For each image; processes, which draw the same numbers, take different ones."""
        drawn = share(torch.rand(len(images) * world(), device=images.device, dtype=images.dtype))
        return low + (high - low) * drawn

    angle, scale = draw(-0.26, 0.26), draw(0.8, 1.1)
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0).to(images.dtype)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack(
        [torch.stack([cos * mirror, -sin, draw(-0.2, 0.2)], 1), torch.stack([sin * mirror, cos, draw(-0.2, 0.2)], 1)], 1
    )
    moved = F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)
    return moved * draw(0.7, 1.3).reshape(-1, 1, 1, 1) + draw(-0.3, 0.3).reshape(-1, 1, 1, 1)


class Instance(Pretext):
    """Every image is a class of its own; a memory bank of embeddings stands for the classes.

    The softmax over all images (Wu et al. 2018, arXiv 1805.01978, equation 2), over a sample of them where there are
    many. The noise-contrastive estimation of the paper holds its normaliser constant and diverges on small data sets.
    """

    def attach(self, module: nn.Module, course: Course) -> None:
        """The bank starts at random, as in the paper."""
        super().attach(module, course)
        self._bank = F.normalize(torch.randn(course.count, EMBEDDING, device=home(module).device), dim=1)

    def loss(self, task: Callable[[], Tensor], forward: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """Cross entropy of the image among the others; its place in the bank follows the embedding."""
        del task
        found = self.embedding(forward, batch.images)
        own = batch.indices.to(self._bank.device)
        count, device = len(self._bank), self._bank.device
        many = count > OTHERS
        others = torch.randint(count, (OTHERS,), device=device) if many else torch.arange(count, device=device)
        right = (found * self._bank[own]).sum(1, keepdim=True)
        wrong = (found @ self._bank[others].T).masked_fill(own[:, None] == others, -torch.inf)
        with torch.no_grad():
            places, new = of_all(own), of_all(found.detach())
            self._bank[places] = F.normalize(self._bank[places].lerp(new, 1 - BANK_MOMENTUM), dim=1)
        answers = torch.zeros(len(own), dtype=torch.long, device=found.device)
        return F.cross_entropy(torch.cat([right, wrong], 1) / HEAT, answers)

    def state(self) -> dict[str, Any]:
        """The bank."""
        return {"bank": self._bank}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._bank = state["bank"]


OBJECTIVES: dict[str, Callable[[], Hook]] = {
    "rotation": Rotation,
    "exemplar": Exemplar,
    "instance": Instance,
    "labels": Labels,
}
