"""One split of a data set, as batches of normalised images.

Small images live decoded in memory as uint8 and are augmented a batch at a time; large ones are read by workers.
What a batch contains depends on (seed, indices) alone, so a resumed run sees the same pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Normalisation:
    """``(x / 255 - mean) / std`` for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 of the same shape."""
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)


class Split(Protocol):
    """What the loop needs of a split."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""

    def batches(self, batches: Sequence[Tensor], augment_seed: int | None = None) -> Iterator[Tensor]:
        """Normalised float32 images (B, C, H, W) for each tensor of indices; augmented where a seed is given."""


@dataclass(frozen=True)
class ArraySplit:
    """Images in memory: uint8, or float images that are taken as they are."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor
    normalise: Normalisation
    flip: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def batches(self, batches: Sequence[Tensor], augment_seed: int | None = None) -> Iterator[Tensor]:
        """See `Split`."""
        for indices in batches:
            images = self.images[indices]
            if augment_seed is not None:
                generator = torch.Generator().manual_seed(hash((augment_seed, *indices[:4].tolist())) & 0x7FFFFFFF)
                images = crop_and_flip(images, generator, self.flip)
            yield images if images.is_floating_point() else self.normalise(images)


def crop_and_flip(images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
    """Random shifts by up to an eighth of the image (zeros come in), and mirror images, (N, C, H, W)."""
    count, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    shifts = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    rows, columns = shifts[0] + torch.arange(height), shifts[1] + torch.arange(width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class FileSplit:
    """Images in files, read by worker processes: random resized crops to train, a centre crop to test."""

    paths: tuple[str, ...]
    labels: Tensor
    shape: tuple[int, ...]
    normalise: Normalisation

    def batches(self, batches: Sequence[Tensor], augment_seed: int | None = None) -> Iterator[Tensor]:
        """See `Split`."""
        reader = _Reader(self.paths, self.shape, augment_seed)
        sampler = [indices.tolist() for indices in batches]
        loader = torch.utils.data.DataLoader(
            reader, batch_sampler=sampler, num_workers=WORKERS if len(sampler) > 1 else 0
        )
        for images in loader:
            yield self.normalise(images)


@dataclass(frozen=True)
class _Reader(torch.utils.data.Dataset[Tensor]):
    paths: tuple[str, ...]
    shape: tuple[int, ...]
    seed: int | None

    def __getitem__(self, index: int) -> Tensor:
        from torchvision.transforms import v2

        size = self.shape[1:]
        image = read_image(self.paths[index], self.shape[0])
        if self.seed is None:
            image = v2.functional.resize(image, round(min(size) * 256 / 224), antialias=True)
            centre: Tensor = v2.functional.center_crop(image, list(size))
            return centre
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, index)) & 0x7FFFFFFF)
            image = v2.RandomResizedCrop(size, antialias=True)(image)
            mirrored: Tensor = v2.RandomHorizontalFlip()(image)
            return mirrored


def read_image(path: str, channels: int) -> Tensor:
    """Decode one file to uint8 (C, H, W)."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class DatasetSplit:
    """A user's own ``torch.utils.data.Dataset`` of (image, label); it augments by itself, if at all."""

    dataset: Any
    labels: Tensor
    shape: tuple[int, ...]

    def batches(self, batches: Sequence[Tensor], augment_seed: int | None = None) -> Iterator[Tensor]:
        """See `Split`."""
        del augment_seed
        for indices in batches:
            yield torch.stack([torch.as_tensor(self.dataset[i][0]) for i in indices.tolist()])
