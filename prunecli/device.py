"""The device that a recipe names, and that of this process where several share a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from prunecli.errors import InputError
from prunecli.ranks import local_rank, world

Result = TypeVar("Result")


def chosen(name: str) -> torch.device:
    """The device that ``train.device`` names: ``auto`` is the GPU where there is one; ``cuda`` is each process's own.

    Raises:
        InputError: it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world() > 1:
        return usable(f"cuda:{local_rank()}", "one process for each GPU, or cpu", "train.device")
    return usable(name, "auto, cpu or cuda", "train.device")


def computed(name: str, work: Callable[[torch.device], Result]) -> Result:
    """What `work` gives on the device that ``train.device`` names; on the CPU where that has too little memory.

    Raises:
        InputError: it is not there.
    """
    device = chosen(name)
    try:
        return work(device)
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    return work(torch.device("cpu"))


def usable(name: str, hint: str, what: str = "device") -> torch.device:
    """The device of a name, once a tensor could be made on it.

    Args:
        name: as torch knows it.
        hint: what would be right, for the message.
        what: the field of the recipe, for the message.

    Raises:
        InputError: it is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{what} {name!r} cannot be used here", hint=hint) from error
    return device
