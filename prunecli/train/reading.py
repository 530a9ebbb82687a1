"""Images that are read one at a time, by this process or by workers.

What reading draws from torch, NumPy or Python depends on (seed, index) alone, whoever reads: a resumed run, and one on
more processes, see the same pixels.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunecli.errors import DataError, blamed

WORKERS = min(8, os.cpu_count() or 1)
_START = "fork" if sys.platform == "linux" else None  # what a user's file defines cannot always be pickled


def read_batches(
    read: Callable[[int], Tensor], batches: Sequence[Tensor], seed: int | None, workers: int
) -> Iterator[Tensor]:
    """The images (B, ...) of each tensor of indices; for a single batch no worker is started.

    Raises:
        DataError: that of `read`; or a worker died.
    """
    count = workers if len(batches) > 1 else 0
    loader: DataLoader[Tensor | DataError] = DataLoader(
        _Batches(read, -1 if seed is None else seed),
        sampler=[indices.tolist() for indices in batches],
        batch_size=None,
        num_workers=count,
        multiprocessing_context=_START if count else None,
        generator=torch.Generator(),  # the state of torch's own belongs to the training
    )
    with blamed("the images cannot be read", DataError):
        for images in loader:
            if isinstance(images, DataError):
                raise images
            yield images


@dataclass(frozen=True)
class _Batches(Dataset[Tensor | DataError]):
    read: Callable[[int], Tensor]
    seed: int

    def __getitem__(self, indices: list[int]) -> Tensor | DataError:
        """A batch, or what is wrong with it: an error would arrive from a worker with its whole traceback."""
        with draws_apart():
            try:
                return torch.stack([self._image(index) for index in indices])
            except DataError as error:
                return error

    def _image(self, index: int) -> Tensor:
        number = hash((self.seed, index)) & 0x7FFFFFFF
        torch.default_generator.manual_seed(number)  # that of the CPU alone
        np.random.seed(number)
        random.seed(number)
        return self.read(index)


@contextlib.contextmanager
def draws_apart() -> Iterator[None]:
    """Random numbers go on afterwards as if none had been drawn."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
