"""Data sets by name.

    digits                      built in: 1797 handwritten digits, 1x8x8
    folder:PATH                 one folder for each class, in train/ and test/ (or val/)
    imagenet:ROOT               the same, with val/
    cifar10[:ROOT]  cifar100[:ROOT]  fashionmnist[:ROOT]      from torchvision; without ROOT they are downloaded
    fake:3x32x32                random pixels and labels
    images:PATH                 a folder of images without labels, also in folders below it
    webdataset:PATH             tar files of images and classes, train*.tar and test*.tar (or val*.tar)
    path/to/data.py:build       a function that returns (train, test): arrays, or torch Datasets

``?mean=0.49,0.48,0.45&std=0.2,0.2,0.2`` at the end replaces the normalisation; ``data.py:build?workers=4`` reads the
items of a Dataset in four processes.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from prunecli.cache import cache_dir
from prunecli.collectives import first_alone
from prunecli.errors import DataError, blamed, summary
from prunecli.train.dataset import DatasetSplit
from prunecli.train.shards import indexed
from prunecli.train.split import (
    ArraySplit,
    FileSplit,
    Normalisation,
    Place,
    Split,
    read_image,
    usual,
)  # fmt: skip
from prunecli.units import parse_shape
from prunecli.user_code import user_function

SMALL = 64  # images up to this many pixels a side are kept decoded in memory
_FORMATS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Data:
    """A data set: two splits, opened when they are used, and the number of classes, None where it has no labels."""

    name: str
    open_train: Callable[[], Split]
    open_test: Callable[[], Split]
    classes: int | None

    @cached_property
    def train(self) -> Split:
        """Images to train on."""
        return self.open_train()

    @cached_property
    def test(self) -> Split:
        """Images to measure accuracy on."""
        return self.open_test()


@dataclass(frozen=True)
class _Wanted:
    """What the model takes and gives: (C, H, W) and the number of outputs."""

    shape: tuple[int, ...]
    classes: int


def open_data(text: str, shape: Sequence[int], classes: int) -> Data:
    """Open a data set for a model.

    Args:
        text: DATA as on the command line.
        shape: (C, H, W) of the model's input.
        classes: number of the model's outputs.

    Raises:
        DataError: unknown or missing data, or images and labels that do not fit the model.
    """
    head, _, query = text.partition("?")
    kind, _, place = head.partition(":")
    wanted = _Wanted(tuple(shape), classes)
    if kind in SETS:
        data = SETS[kind](text, place, wanted, _normalisation(query, text, wanted.shape[0] if wanted.shape else 3))
    elif ":" in head and (kind.endswith(".py") or "." in kind):
        data = _user(head, query)
    else:
        raise DataError(f"unknown data {text!r}", hint=_meant(kind))
    _check_fit(data, wanted)
    return data


def _meant(kind: str) -> str:
    """What to do about data of an unknown kind: a folder without its kind, a misspelt kind, or all there are."""
    if Path(kind).expanduser().is_dir():
        return f"folder:{kind}"
    near = difflib.get_close_matches(kind, SETS, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join((*SETS, 'FILE.py:FUNCTION'))}"


def _options(query: str, text: str, *known: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := options.keys() - set(known):
        raise DataError(f"{text!r}: unknown option {', '.join(sorted(unknown))}", hint=f"options: {', '.join(known)}")
    return options


def _normalisation(query: str, text: str, channels: int) -> Normalisation:
    default, options = usual(channels), _options(query, text, "mean", "std")
    try:
        mean, std = (tuple(float(x) for x in options[k].split(",")) if k in options else None for k in ("mean", "std"))
    except ValueError as error:
        raise DataError(f"{text!r}: {error}", hint="for example ?mean=0.49,0.48,0.45&std=0.2,0.2,0.2") from error
    chosen = Normalisation(mean or default.mean, std or default.std)
    if {len(chosen.mean), len(chosen.std)} - {1, channels} or not all(chosen.std):
        raise DataError(f"{text!r}: mean and std need one non-zero number for each of the {channels} channels")
    return chosen


def _check_fit(data: Data, wanted: _Wanted) -> None:
    if wanted.shape and tuple(data.test.shape) != wanted.shape:
        found, asked = ("x".join(map(str, s)) for s in (data.test.shape, wanted.shape))
        raise DataError(
            f"{data.name}: the images are {found}, the model takes {asked}",
            hint=f"another data set, or --input 1x{found} if the network can take that",
        )
    if data.classes not in (None, wanted.classes):
        raise DataError(
            f"{data.name} has {data.classes} classes, the model has {wanted.classes} outputs",
            hint="check the data set, or the num_classes of the architecture",
        )


def _digits(text: str, place: str, wanted: _Wanted, normalise: Normalisation) -> Data:
    """The optical digits of the UCI repository (Alpaydin and Kaynak 1998); the last 360 are the test images."""
    del text, place, wanted
    path = Path(__file__).resolve().parents[1] / "datasets" / "digits.npz"
    with np.load(path, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"]).unsqueeze(1).float().mul(255 / 16).round().to(torch.uint8)
        labels = torch.from_numpy(file["labels"]).long()
    first, last = slice(0, -360), slice(-360, None)
    return Data(
        "digits",
        lambda: ArraySplit(images[first], labels[first], normalise, flip=False),
        lambda: ArraySplit(images[last], labels[last], normalise, flip=False),
        classes=10,
    )


def _folder(text: str, place: str, wanted: _Wanted, normalise: Normalisation) -> Data:
    root = Path(place).expanduser()
    if not place or not root.is_dir():
        raise DataError(
            f"no such folder: {place or '(empty)'} (from {text!r})", hint="folder:PATH with train/ and test/"
        )
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise DataError(f"{root} has no train/ and test/ (or val/)", hint="each holds one folder for each class")
    classes = _classes(root / "train")
    if _classes(test) != classes:
        raise DataError(f"{root}/train and {test} have different classes")
    return Data(
        text,
        lambda: _files(root / "train", classes, wanted.shape, normalise),
        lambda: _files(test, classes, wanted.shape, normalise),
        classes=len(classes),
    )


def _webdataset(text: str, place: str, wanted: _Wanted, normalise: Normalisation) -> Data:
    root = Path(place).expanduser()
    train = sorted(root.glob("train*.tar")) if place else []
    test = next((found for name in ("test", "val") if (found := sorted(root.glob(f"{name}*.tar")))), [])
    if not train or not test:
        raise DataError(
            f"{place or '(empty)'} has no train*.tar and test*.tar (or val*.tar)", hint="webdataset:PATH of a folder"
        )
    parts = [_archived(text, archives, wanted, normalise) for archives in (train, test)]
    known = [part.known for part in parts if part.known is not None]
    classes = max(int(labels.max()) for labels in known) + 1 if len(known) == 2 else None
    return Data(text, lambda: parts[0], lambda: parts[1], classes)


def _archived(text: str, archives: Sequence[Path], wanted: _Wanted, normalise: Normalisation) -> ArraySplit | FileSplit:
    found = indexed(archives, _FORMATS)
    if not found:
        raise DataError(f"{archives[0]} holds no images (from {text!r})", hint=f"known: {', '.join(_FORMATS)}")
    numbers = [number for _, number in found if number is not None]
    labels = torch.tensor(numbers) if len(numbers) == len(found) else None
    return _split(archives[0].parent, tuple(member for member, _ in found), labels, wanted.shape, normalise)


def _images(text: str, place: str, wanted: _Wanted, normalise: Normalisation) -> Data:
    root = Path(place).expanduser()
    paths = tuple(sorted(str(p) for p in root.rglob("*") if p.suffix.lower() in _FORMATS)) if place else ()
    if not paths:
        raise DataError(f"{place or '(empty)'} holds no images (from {text!r})", hint=f"known: {', '.join(_FORMATS)}")
    split = _split(root, paths, None, wanted.shape, normalise)
    return Data(text, lambda: split, lambda: split, classes=None)


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _files(folder: Path, classes: list[str], shape: tuple[int, ...], normalise: Normalisation) -> Split:
    found = [
        (entry.path, number)
        for number, name in enumerate(classes)
        for entry in sorted(os.scandir(folder / name), key=lambda e: e.name)
        if entry.name.lower().endswith(_FORMATS)
    ]
    if not found:
        raise DataError(f"{folder} holds no images", hint=f"known formats: {', '.join(_FORMATS)}")
    return _split(folder, tuple(p for p, _ in found), torch.tensor([n for _, n in found]), shape, normalise)


def _split(
    folder: Path, paths: tuple[Place, ...], labels: Tensor | None, shape: tuple[int, ...], normalise: Normalisation
) -> ArraySplit | FileSplit:
    """Small images in memory, large ones from their files."""
    size = _first_image(paths[0], shape[0])
    if max(size[1:]) <= SMALL:
        return ArraySplit(_decoded(folder, paths, size), labels, normalise)
    if any(have < want for have, want in zip(size[1:], shape[1:], strict=True)):
        return FileSplit(paths, labels, size, normalise)  # too small: the caller's check says so
    return FileSplit(paths, labels, shape, normalise)


def _first_image(path: Place, channels: int) -> tuple[int, ...]:
    return tuple(read_image(path, channels).shape)


def _decoded(folder: Path, paths: Sequence[Place], size: tuple[int, ...]) -> Tensor:
    """All images of a folder as one uint8 array (N, C, H, W), decoded once and kept in the cache."""
    stamp = [str(folder.resolve()), str(size), *map(_stamp, paths)]
    key = hashlib.sha256("\n".join(stamp).encode()).hexdigest()[:16]
    path = cache_dir() / f"images-{key}.npy"
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError):
        pass
    images = [read_image(p, size[0]) for p in paths]
    odd = next((i for i, image in enumerate(images) if tuple(image.shape) != size), None)
    if odd is not None:
        raise DataError(
            f"{paths[odd]} is {'x'.join(map(str, images[odd].shape[1:]))}, {paths[0]} is not",
            hint="small images must all have one size",
        )
    stacked = torch.stack(images)
    _keep(path, stacked)
    return stacked


def _stamp(place: Place) -> str:
    """When a file was changed, and which one it is."""
    return f"{place} {os.stat(place if isinstance(place, str) else place.archive).st_mtime_ns}"


def _keep(path: Path, images: Tensor) -> None:
    """A cache that cannot be written is no error."""
    from prunecli.checkpoint.write import atomic
    from prunecli.errors import OutputError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as stream:
            np.save(stream, images.numpy())
    except (OSError, OutputError):
        return


def _torchvision(name: str) -> Callable[[str, str, _Wanted, Normalisation], Data]:
    def build(text: str, place: str, wanted: _Wanted, normalise: Normalisation) -> Data:
        del wanted
        import torchvision

        root = Path(place).expanduser() if place else cache_dir() / "data"
        kind = getattr(torchvision.datasets, name)
        try:
            sets = first_alone(lambda: [kind(str(root), train=train, download=not place) for train in (True, False)])
        except Exception as error:  # torchvision raises what urllib, zip and pickle happen to raise
            raise DataError(f"{text}: {error}", hint=f"{text.partition(':')[0]}:ROOT for a copy you have") from error
        train, test = sets
        return Data(text, lambda: _array(train, normalise), lambda: _array(test, normalise), len(train.classes))

    return build


def _array(dataset: Any, normalise: Normalisation) -> ArraySplit:
    pixels = torch.as_tensor(dataset.data)
    images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return ArraySplit(images, torch.as_tensor(dataset.targets).long(), normalise)


def _fake(text: str, place: str, wanted: _Wanted, normalise: Normalisation) -> Data:
    try:
        shape = parse_shape(place)
    except ValueError as error:
        raise DataError(f"{text!r}: {error}", hint="fake:3x32x32") from error

    def split(count: int, seed: int) -> ArraySplit:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
        return ArraySplit(images, torch.randint(0, wanted.classes, (count,), generator=generator), normalise)

    return Data(text, lambda: split(512, 0), lambda: split(256, 1), classes=wanted.classes)


def _user(text: str, query: str) -> Data:
    place, _, name = text.rpartition(":")
    workers = _options(query, text, "workers").get("workers", "0")
    if not workers.isdecimal():
        raise DataError(
            f"{text!r}: workers={workers} is no count", hint="the processes that read a Dataset: ?workers=4"
        )
    function = user_function(place, name, DataError)
    with blamed(f"{text} failed", DataError):
        built = function()
    if not isinstance(built, list | tuple) or len(built) != 2:
        raise DataError(f"{text} returned {type(built).__name__}, expected (train, test)")
    train, test = (_user_split(text, part, int(workers)) for part in built)
    if not (len(train) and len(test)):
        raise DataError(f"{text}: a split has no images")
    if not (train.labelled and test.labelled):
        return Data(text, lambda: train, lambda: test, None)
    labels = torch.cat([train.labels, test.labels])
    if labels.min() < 0:
        raise DataError(f"{text}: labels count from 0, the least is {int(labels.min())}")
    return Data(text, lambda: train, lambda: test, int(labels.max()) + 1)


def _user_split(text: str, part: Any, workers: int) -> ArraySplit | DatasetSplit:
    if isinstance(part, list | tuple) and len(part) == 2:
        images, labels = _user_arrays(text, *part)
        return ArraySplit(images, labels, usual(images.shape[1]))
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        raise DataError(f"{text}: each split is (images, labels) or a torch Dataset, not {type(part).__name__}")
    return DatasetSplit(part, workers)


def _user_arrays(text: str, images: Any, labels: Any) -> tuple[Tensor, Tensor | None]:
    """Images (N, C, H, W) and their labels (N,), as tensors.

    Raises:
        DataError: they are none.
    """
    try:
        pixels, known = torch.as_tensor(images), None if labels is None else torch.as_tensor(labels).long()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{text}: images and labels are no numbers: {summary(error)}") from error
    if pixels.ndim != 4 or (known is not None and known.shape != pixels.shape[:1]):
        shapes = f"{tuple(pixels.shape)} and {None if known is None else tuple(known.shape)}"
        raise DataError(f"{text}: expected images (N, C, H, W) and labels (N,), not {shapes}")
    return pixels, known


SETS: dict[str, Callable[[str, str, _Wanted, Normalisation], Data]] = {
    "digits": _digits,
    "folder": _folder,
    "imagenet": _folder,
    "images": _images,
    "webdataset": _webdataset,
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "fashionmnist": _torchvision("FashionMNIST"),
    "fake": _fake,
}
