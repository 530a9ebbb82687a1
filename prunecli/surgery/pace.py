"""What takes how long on a CPU, in multiply-adds.

With fixed numbers, decisions for the sake of speed fall where they clearly save time, and the same model always gives
the same file.
"""

from __future__ import annotations

MOVE = 10  # one number through memory
START = 1.5e6  # one more kernel
LANES = 16  # floats that one instruction takes: 65 channels take as long as 80 (`benchmarks/expand.py`)


def pays(saved: float, moved: float, kernels: int) -> bool:
    """Whether saved multiply-adds outweigh the numbers that are moved for them and the kernels that are started."""
    return saved >= MOVE * moved + START * kernels


def computed(channels: int) -> int:
    """As many channels as a convolution takes time for."""
    return -(-channels // LANES) * LANES
