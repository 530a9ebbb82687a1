"""A user's own ``torch.utils.data.Dataset``: what its items must be, and the labels that it tells beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from prunecli.errors import DataError, blamed, summary
from prunecli.train.reading import draws_apart, read_batches
from prunecli.train.split import usual


@dataclass(frozen=True)
class DatasetSplit:
    """Items are images (C, H, W), or such an image and its label; it augments by itself, if at all.

    Attributes:
        dataset: what a user wrote.
        workers: how many processes read its items; 0 is this one, which data sets may want that hold open files.
    """

    dataset: Any
    workers: int = 0

    def __len__(self) -> int:
        """See `Split`."""
        return len(self.dataset)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the first item."""
        with draws_apart():
            return tuple(self._image(0).shape)

    @cached_property
    def labels(self) -> Tensor:
        """Found out when they are asked for: a method that needs none never touches them.

        As the data set tells them by the conventions of torch and torchvision, or else with every image.

        Raises:
            DataError: an item has none that is a number.
        """
        told, count = _told_labels(self.dataset), len(self.dataset)
        some = sorted({*range(0, count, max(1, count // 8)), count - 1})
        if told is not None and len(told) == count and all(self._label(i) == told[i] for i in some):
            return told
        return torch.tensor([self._label(i) for i in range(count)])

    @property
    def labelled(self) -> bool:
        """Whether the first item has a label that is a number; beside images without labels may be None, or a path."""
        try:
            self._label(0)
        except DataError:
            return False
        return True

    def batches(self, batches: Sequence[Tensor], augment_seed: int | None = None) -> Iterator[Tensor]:
        """See `Split`."""
        self.shape  # noqa: B018  found once, and not by every worker
        for images in read_batches(self._fitting, batches, augment_seed, self.workers):
            yield images if images.is_floating_point() else usual(images.shape[1])(images)

    def _item(self, number: int) -> Any:
        with blamed(f"item {number} of the data set cannot be read", DataError):
            return self.dataset[number]

    def _image(self, number: int) -> Tensor:
        item = self._item(number)
        image = item[0] if isinstance(item, list | tuple) and item else item
        if not isinstance(image, Tensor | np.ndarray) or image.ndim != 3:
            shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor | np.ndarray) else ""
            raise DataError(
                f"item {number} of the data set holds {type(image).__name__}{shape}, no image (C, H, W)",
                hint="its items are (image, label), the image a tensor: transforms.v2.ToImage() makes one",
            )
        return torch.as_tensor(image)

    def _fitting(self, number: int) -> Tensor:
        image = self._image(number)
        if tuple(image.shape) != self.shape:
            raise DataError(
                f"item {number} of the data set is {tuple(image.shape)}, item 0 is {self.shape}",
                hint="a transform that resizes them",
            )
        return image

    def _label(self, number: int) -> int:
        with draws_apart():
            item = self._item(number)
        try:
            return int(item[1])
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"the label of item {number} of the data set is no number: {summary(error)}") from error


def _told_labels(dataset: Any) -> Tensor | None:
    """(N,) the labels that a data set holds beside its images, None where it tells none."""
    if isinstance(dataset, Subset):
        whole = _told_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        told = [labels for part in dataset.datasets if (labels := _told_labels(part)) is not None]
        return torch.cat(told) if len(told) == len(dataset.datasets) else None
    if isinstance(dataset, TensorDataset):
        held: Any = dataset.tensors[-1]
    else:
        held = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        found = torch.as_tensor(held)
    except (TypeError, ValueError, RuntimeError):
        return None
    return found.long() if found.ndim == 1 and not found.is_floating_point() else None
