"""What only data can tell: accuracy, and the FLOPs that images take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from prunecli.cost.dynamic import Masks, dynamic_cost, masks_of
from prunecli.device import computed
from prunecli.errors import DataError
from prunecli.facts import DynamicFacts
from prunecli.graph.copying import placed
from prunecli.graph.tape import Example
from prunecli.inputs import shown
from prunecli.methods.base import Evidence
from prunecli.methods.hook import Hook
from prunecli.model import Model
from prunecli.recipe.schema import Train
from prunecli.train.data import Data, open_data
from prunecli.train.evaluate import BATCH, accuracy, logits
from prunecli.train.split import Drawn


def data_for(model: Model, text: str) -> Data:
    """Open a data set and check that it fits the model.

    Raises:
        DataError: it does not, or the model is no classifier.
    """
    with torch.no_grad():
        try:
            found = logits(model.module(*model.example.args))
        except Exception as error:  # the user's forward may raise anything
            given = f"an input {shown(model.inputs)}"
            raise DataError(f"the model does not run on {given}: {error}", hint="check --input") from error
    if found.ndim != 2:
        raise DataError(f"the model gives {tuple(found.shape)}; accuracy needs (N, classes)")
    if len(model.inputs) > 1:
        raise DataError(f"the model takes {len(model.inputs)} tensors; data sets give images and their classes")
    return open_data(text, model.inputs[0].shape[1:], found.shape[1])


def known_accuracy(module: nn.Module, data: Data | None, device: str = "auto") -> float | None:
    """Top-1 on the test images, None without data or labels; computed where `train.device` says."""
    if data is None or data.classes is None:
        return None
    return computed(device, lambda place: accuracy(placed(module, place), data.test))


def flops_taken(model: Model, data: Data | None, device: str = "auto") -> DynamicFacts | None:
    """What test images take in a model with gates; None without gates or data."""
    if data is None or not model.journal.gates:
        return None
    batches = list(torch.arange(len(data.test)).split(BATCH))

    def open_on(place: torch.device) -> Masks:
        seen = data.test.batches(batches)
        return masks_of(placed(model.module, place), (images.to(place, model.dtype) for images in seen))

    masks = computed(device, open_on)
    taken = dynamic_cost(model.module, model.example)(masks)
    return DynamicFacts(
        images=len(taken),
        mean=round(float(taken.mean())),
        least=round(float(taken.min())),
        most=round(float(taken.max())),
        percentiles={str(p): round(float(np.percentile(taken, p))) for p in (5, 25, 50, 75, 95)},
        open={name: float(mask.mean()) for name, mask in masks.items()},
    )


def real_example(model: Model, data: Data, count: int = 8) -> Example:
    """A batch of real test images."""
    indices = torch.arange(min(count, len(data.test)))
    return Example((next(iter(data.test.batches([indices]))).to(model.dtype),))


def evidence_of(
    module: nn.Module, example: Example, seed: int, data: Data | None, fit: Callable[[Train, Hook], nn.Module] | None
) -> Evidence:
    """What a method may look at; images come in the dtype of the example."""
    labelled = None if data is None else Drawn(data.train, seed, example.args[0]).labelled
    return Evidence(module, example, seed, labelled, fit)


def evaluated(data: str | None, before: float | None, after: float | None) -> dict[str, str | float | None]:
    """What the file's metadata says about accuracy; the place of the data is nobody's business."""
    kind = None if data is None else data.partition("?")[0].partition(":")[0]
    return {"data": kind, "accuracy_before": before, "accuracy": after}
