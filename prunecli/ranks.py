"""Which of several processes this is, as ``torchrun`` tells them. No torch here.

One process is a world of one; little else asks whether there are more.
"""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process; 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarted() -> bool:
    """Whether ``torchrun --max-restarts`` has started this process anew after one on this machine died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
