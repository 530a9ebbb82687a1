"""Where things that can be made again are kept. No torch here."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/prunecli``, or ``~/.cache/prunecli``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunecli"
