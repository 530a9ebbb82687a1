"""A linear probe: what a linear classifier makes of the features of a network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunecli.graph.tape import Example
from prunecli.graph.tensors import home
from prunecli.methods.pretext import head_of
from prunecli.train.data import Data
from prunecli.train.evaluate import BATCH
from prunecli.train.split import Split

RIDGE = 1e-3  # of the mean variance of a feature
MOST = 20_000  # training images that the classifier is fitted on


@torch.no_grad()
def linear_probe(module: nn.Module, example: Example, data: Data, seed: int) -> float:
    """Top-1 on the test images of a ridge regression from what the last layer reads to the classes.

    In closed form, so that it has nothing to tune.
    """
    head, train, test = head_of(module, example), data.train, data.test
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:MOST]
    features, labels = _features(module, head, train, order)
    mean = features.mean(0)
    centred = features - mean
    targets = F.one_hot(labels).double()
    normal = centred.T @ centred
    normal.diagonal().add_(RIDGE * normal.diagonal().mean() + torch.finfo().tiny)  # features may all be constant
    weights = torch.linalg.solve(normal, centred.T @ (targets - targets.mean(0)))
    seen, answers = _features(module, head, test, torch.arange(len(test)))
    return float((((seen - mean) @ weights + targets.mean(0)).argmax(1) == answers).double().mean())


def _features(module: nn.Module, head: str, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
    """(N, features) float64 that the last layer reads, its positions averaged, with the labels (N,)."""
    found = list(_read_by(module.eval(), head, split, list(indices.split(BATCH))))
    return torch.cat(found).double(), split.labels[indices]


def _read_by(module: nn.Module, path: str, split: Split, batches: list[Tensor]) -> Iterator[Tensor]:
    place = home(module)
    caught: list[Tensor] = []

    def catch(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        del layer
        caught.append(args[0].flatten(2).mean(2) if args[0].ndim > 2 else args[0])

    handle = module.get_submodule(path).register_forward_pre_hook(catch)
    try:
        for images in split.batches(batches):
            caught.clear()
            module(images.to(place))
            yield caught[-1].cpu()
    finally:
        handle.remove()
