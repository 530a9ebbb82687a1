"""Load what the tool wrote."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunecli.model import Opening, open_model


def load(path: str | Path, *, arch: str | None = None, trust: bool = False) -> nn.Module:
    """The model in a file, in eval mode; never unpickles a container.

    Args:
        path: a container, or any checkpoint that `prunecli analyze` reads.
        arch: needed where the file was made from a user's own architecture.
        trust: allow files that execute code.

    Raises:
        InputError: the file cannot be used.
    """
    return open_model(str(path), Opening(arch=arch, trust=trust)).module
