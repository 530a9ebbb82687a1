"""How many images a second reach the training loop, beside torchvision's folders read by torch's loader.

python benchmarks/loading.py [--small 4096] [--large 512] [--turns 3]

Random JPEG images are written first. `first` is the pass that decodes and caches small images, `again` every later one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from prunecli.train.data import open_data

BATCH = 128


def write(root: Path, size: int, count: int) -> None:
    """Smooth random pictures of ten classes, as folders and as archives."""
    random = np.random.default_rng(0)
    for split, share in (("train", count), ("test", 10)):
        for number in range(share):
            place = root / split / str(number % 10)
            place.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(place / f"{number}.jpg")
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for path in sorted((root / split).rglob("*.jpg")):
                tar.add(path, f"{path.stem}.jpg")


def ours(text: str, size: int) -> Callable[[], Iterable[object]]:
    """One epoch with augmentation, from opening on."""

    def epoch() -> Iterable[object]:
        split = open_data(text, (3, size, size), 10).train
        return split.batches(list(torch.randperm(len(split)).split(BATCH)), 1)

    return epoch


def peer(root: Path, size: int) -> Callable[[], Iterable[object]]:
    """The usual lines of a training script, with a worker for each core."""
    crop = v2.RandomCrop(size, padding=size // 8) if size <= 64 else v2.RandomResizedCrop(size)
    steps = [v2.ToImage(), crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    chain = v2.Compose([*steps, v2.Normalize([0.5] * 3, [0.25] * 3)])

    def epoch() -> Iterable[object]:
        images = torchvision.datasets.ImageFolder(str(root / "train"), chain)
        return torch.utils.data.DataLoader(images, BATCH, shuffle=True, num_workers=os.cpu_count() or 1)

    return epoch


def speed(epoch: Callable[[], Iterable[object]], count: int) -> float:
    """Images a second."""
    started = time.perf_counter()
    for _ in epoch():
        pass
    return count / (time.perf_counter() - started)


def main() -> None:
    """A row for each kind of data."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", type=int, default=4096)
    parser.add_argument("--large", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, {os.cpu_count()} cores, batch {BATCH}")
    print("| images | first | again | archives, again | torchvision |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        for size, count in ((32, asked.small), (224, asked.large)):
            root = Path(folder) / str(size)
            write(root, size, count)
            mine, archives = ours(f"folder:{root}", size), ours(f"webdataset:{root}", size)
            first = speed(mine, count)
            speed(archives, count)
            turns = [[speed(e, count) for e in (mine, archives, peer(root, size))] for _ in range(asked.turns)]
            cells = " | ".join(f"{v:,.0f}" for v in (first, *map(statistics.median, zip(*turns, strict=True))))
            print(f"| {count} of {size} x {size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
