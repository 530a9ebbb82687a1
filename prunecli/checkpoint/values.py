"""Values that training scripts keep beside their weights: arguments, paths, dates, numbers of numpy.

Their pickles are read and left out: nothing is imported for them, and nothing of theirs is called. So a file that holds
nothing else beside its weights needs no trust.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch


class LeftOut:
    """Stands for a value; takes whatever its pickle gives it, and keeps nothing."""

    def __init__(self, *args: object) -> None:
        del args

    def __setstate__(self, state: object) -> None:
        del state


def _entries(*args: object) -> dict[Any, Any]:
    """A dict of some kind, which its pickle fills."""
    del args
    return {}


def _items(*args: object) -> list[Any]:
    """A list of some kind, which its pickle fills."""
    del args
    return []


_CLASSES = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),  # Python 3.13
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "builtins": ("int", "float", "bool", "str", "list", "tuple", "dict"),  # what a defaultdict makes
}
_STANDS_FOR: dict[str, Any] = {f"{module}.{name}": LeftOut for module, names in _CLASSES.items() for name in names}
_STANDS_FOR |= {"collections.defaultdict": _entries, "collections.deque": _items}


def left_out() -> AbstractContextManager[None]:
    """While it lasts, `torch.load` with ``weights_only`` reads such values as nothing."""
    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in _STANDS_FOR.items()]
    context: AbstractContextManager[None] = torch.serialization.safe_globals(stand_ins)
    return context


def is_left_out(name: str) -> bool:
    """Whether a global that a pickle names, ``module.name``, is such a value."""
    return name in _STANDS_FOR
