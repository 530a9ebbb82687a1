"""One split of a data set, as batches of normalised images.

Small images live decoded in memory as uint8 and are augmented a batch at a time; large ones are read by workers.
What an image looks like depends on (seed, index) alone: a resumed run, and one on more processes, see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunecli.errors import DataError
from prunecli.train.reading import WORKERS, read_batches
from prunecli.train.shards import Member

Place = str | Member  # of an image: a path, or a file in an archive


@dataclass(frozen=True)
class Normalisation:
    """``(x / 255 - mean) / std`` for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 of the same shape."""
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)


COLOUR = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = Normalisation((0.5,), (0.5,))


def usual(channels: int) -> Normalisation:
    """That of images with so many channels, where nobody says another."""
    return GREY if channels == 1 else COLOUR


class Split(Protocol):
    """What the loop needs of a split."""

    def __len__(self) -> int:
        """How many images."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""

    def batches(self, batches: Sequence[Tensor], augment_seed: int | None = None) -> Iterator[Tensor]:
        """Normalised float32 images (B, C, H, W) for each tensor of indices; augmented where a seed is given."""


def insisted(labels: Tensor | None) -> Tensor:
    """Labels, where there are any.

    Raises:
        DataError: there are none.
    """
    if labels is None:
        raise DataError("these images have no labels", hint="data with labels, such as folder:PATH")
    return labels


@dataclass(frozen=True)
class ArraySplit:
    """Images in memory: uint8, or float images that are taken as they are."""

    images: Tensor  # (N, C, H, W)
    known: Tensor | None  # (N,) labels
    normalise: Normalisation
    flip: bool = True

    def __len__(self) -> int:
        """See `Split`."""
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """See `Split`."""
        return insisted(self.known)

    @property
    def labelled(self) -> bool:
        """Whether it has labels."""
        return self.known is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def batches(self, batches: Sequence[Tensor], augment_seed: int | None = None) -> Iterator[Tensor]:
        """See `Split`."""
        for indices in batches:
            images = self.images[indices]
            if augment_seed is not None:
                images = crop_and_flip(images, uniform(augment_seed, indices, 3), self.flip)
            yield images if images.is_floating_point() else self.normalise(images)


def uniform(seed: int, indices: Tensor, count: int) -> Tensor:
    """(N, count) numbers in [0, 1) that depend on seed and index alone, in whatever batch an image comes.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014) over counters.
    """
    u64 = np.uint64
    counters = indices.numpy().astype(u64)[:, None] * u64(count) + np.arange(1, count + 1, dtype=u64)
    bits: NDArray[Any] = (counters + (u64(seed) << u64(32))) * u64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> u64(27))) * u64(0x94D049BB133111EB)
    bits = bits ^ (bits >> u64(31))
    return torch.from_numpy((bits >> u64(11)).astype(np.float64) * 2.0**-53)


def crop_and_flip(images: Tensor, draws: Tensor, flip: bool) -> Tensor:
    """Random shifts by up to an eighth of the image (zeros come in), and mirror images, (N, C, H, W).

    Args:
        images: (N, C, H, W).
        draws: (N, 3) uniform in [0, 1).
        flip: whether half of them are mirrored.
    """
    count, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    shifts = (draws[:, :2] * (2 * pad + 1)).long()
    rows, columns = shifts[:, :1] + torch.arange(height), shifts[:, 1:] + torch.arange(width)
    if flip:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class FileSplit:
    """Images in files, read by worker processes: random resized crops to train, a centre crop to test."""

    paths: tuple[Place, ...]
    known: Tensor | None  # (N,) labels
    shape: tuple[int, ...]
    normalise: Normalisation

    def __len__(self) -> int:
        """See `Split`."""
        return len(self.paths)

    @property
    def labels(self) -> Tensor:
        """See `Split`."""
        return insisted(self.known)

    def batches(self, batches: Sequence[Tensor], augment_seed: int | None = None) -> Iterator[Tensor]:
        """See `Split`."""
        read = partial(self._image, augmented=augment_seed is not None)
        for images in read_batches(read, batches, augment_seed, WORKERS):
            yield self.normalise(images)

    @cached_property
    def _augment(self) -> Callable[[Tensor], Tensor]:
        """Random resized crops and mirror images."""
        from torchvision.transforms import v2

        chain: Callable[[Tensor], Tensor] = v2.Compose(
            [v2.RandomResizedCrop(self.shape[1:], antialias=True), v2.RandomHorizontalFlip()]
        )
        return chain

    def _image(self, index: int, *, augmented: bool) -> Tensor:
        from torchvision.transforms import v2

        image = read_image(self.paths[index], self.shape[0])
        if augmented:
            return self._augment(image)
        size = self.shape[1:]
        image = v2.functional.resize(image, round(min(size) * 256 / 224), antialias=True)
        centre: Tensor = v2.functional.center_crop(image, list(size))
        return centre


def read_image(place: Place, channels: int) -> Tensor:
    """Decode one file to uint8 (C, H, W).

    Raises:
        DataError: it is no image, or damaged.
    """
    from PIL import Image

    try:
        with Image.open(place if isinstance(place, str) else place.open()) as image:
            mode = "L" if channels == 1 else "RGB"
            pixels = np.array(image if image.mode == mode else image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise DataError(f"{place} is no readable image: {error}") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


@dataclass(frozen=True)
class Drawn:
    """Some images of a split, drawn by a seed, in batches of 64.

    Attributes:
        split: where they come from.
        seed: of the draw, and of augmentation.
        home: pixels get its dtype and place.
        augment: as in training, which is what batch norm knows.
    """

    split: Split
    seed: int
    home: Tensor
    augment: bool = False

    def images(self, count: int) -> Iterator[Tensor]:
        """So many; labels are not looked at."""
        return (images for _, images in self._pairs(count))

    def labelled(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same with their labels."""
        return ((images, self.split.labels[chosen].to(self.home.device)) for chosen, images in self._pairs(count))

    def _pairs(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.split), generator=torch.Generator().manual_seed(self.seed))[:count]
        chosen = list(order.split(64))
        batches = self.split.batches(chosen, self.seed if self.augment else None)
        for indices, images in zip(chosen, batches, strict=True):
            yield indices, images.to(self.home.device, self.home.dtype)
