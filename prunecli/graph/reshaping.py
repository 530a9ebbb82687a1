"""Reshapes that copy nothing where dims were expanded."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`reshape` in which dims that were expanded stay so where they become other dims on their own.

    Windows of a video have millions of positions, all with the channels of the first.
    """
    if not tensor.numel():
        return tensor.reshape(shape)
    small: list[int] = []
    for dims, sizes in _runs(tuple(tensor.shape), shape):
        repeated = all(tensor.stride(dim) == 0 or tensor.shape[dim] == 1 for dim in dims)
        if repeated:
            for dim in dims:
                tensor = tensor.narrow(dim, 0, 1)
        small += [1] * len(sizes) if repeated else sizes
    return tensor.reshape(small).expand(shape)


def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of dims that become others on their own: dims of `old`, and their sizes in `new`."""
    dims: list[int] = []
    sizes: list[int] = []
    rest = [*reversed(new)]
    for dim in range(len(old)):
        dims.append(dim)
        positions = math.prod(old[d] for d in dims)
        while math.prod(sizes) < positions:
            sizes.append(rest.pop())
        if math.prod(sizes) == positions:
            yield dims, sizes
            dims, sizes = [], []
    yield [], rest[::-1]  # ones
