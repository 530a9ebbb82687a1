"""A course for hooks that are tried without a training loop."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunecli.graph.tape import Example
from prunecli.methods.hook import Course
from prunecli.recipe.schema import Train


def course(steps: int, rate: float = 0.1, shape: tuple[int, ...] = (1, 8, 8), **settings: object) -> Course:
    """So many steps of one rate, on random images."""

    def labelled(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for size in torch.arange(count).split(64):
            yield torch.randn(len(size), *shape, generator=generator), size % 10

    return Course(
        [rate] * steps,
        Train(**settings),  # type: ignore[arg-type]
        lambda count: (images for images, _ in labelled(count)),
        labelled,
        1000,
        Example((torch.zeros(1, *shape),)),
    )
