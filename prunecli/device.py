"""The device that a recipe names."""

from __future__ import annotations

import torch

from prunecli.errors import InputError


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
