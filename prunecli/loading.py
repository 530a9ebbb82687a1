"""Load what the tool wrote."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunecli.checkpoint.read import read
from prunecli.model import Opening, open_model, refilled


def load(path: str | Path, *, arch: str | None = None, into: nn.Module | None = None, trust: bool = False) -> nn.Module:
    """The model in a file, in eval mode; never unpickles a container.

    Args:
        path: a container, or any checkpoint that `prunecli analyze` reads.
        arch: needed where the file was made from a user's own architecture.
        into: a freshly built module, as it was before it was cut; it is filled and returned. For files that were made
            from a module in memory.
        trust: allow files that execute code.

    Raises:
        InputError: the file cannot be used.
    """
    if into is not None:
        return refilled(into, read(path, trust=trust))
    return open_model(str(path), Opening(arch=arch, trust=trust)).module
