"""Work without garbage collection."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No search for dead objects meanwhile, as a block or as a decorator.

    Traces and copies make many small objects that live, which starts a search through all objects of the process:
    it takes longer than a trace.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
