"""Accuracy of a model on a split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.errors import InputError, blamed
from prunecli.graph.tape import output_tensors
from prunecli.graph.tensors import home
from prunecli.train.split import Split

BATCH = 256


def logits(output: object) -> Tensor:
    """(N, classes): the first tensor of whatever a classifier returned."""
    return output_tensors(output)[0]


def accuracy(module: nn.Module, split: Split, indices: Tensor | None = None) -> float:
    """Top-1 accuracy in [0, 1], in eval mode, on the device and in the dtype of the parameters.

    Raises:
        InputError: the model does not run on a batch, or gives no answer for each image.
    """
    place = home(module)
    indices = torch.arange(len(split)) if indices is None else indices
    batches = list(indices.split(BATCH))
    training = module.training
    module.eval()
    right = 0
    try:
        with torch.no_grad():
            for chosen, images in zip(batches, split.batches(batches), strict=True):
                with blamed(f"the model does not run on {len(images)} images"):
                    found = logits(module(images.to(place))).argmax(1).cpu()
                if len(found) != len(images):
                    raise InputError(f"the model gives {len(found)} answers for {len(images)} images")
                right += int((found == split.labels[chosen]).sum())
    finally:
        module.train(training)
    return right / max(1, len(indices))
