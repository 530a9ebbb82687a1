"""What takes how long on a CPU, in multiply-adds.

With fixed numbers, decisions for the sake of speed fall where they clearly save time, and the same model always gives
the same file.
"""

from __future__ import annotations

MOVE = 10  # one number through memory
START = 1.5e6  # one more kernel


def pays(saved: float, moved: float, kernels: int) -> bool:
    """Whether saved multiply-adds outweigh the numbers that are moved for them and the kernels that are started."""
    return saved >= MOVE * moved + START * kernels


def kernel_width(count: int) -> int:
    """The width of a group that grouped convolutions are fast at: a power of two up to 8, then a multiple of 8.

    Others are slower than the full width was: 13 of 16 filters take 1.7 times as long (`benchmarks/expand.py`).
    """
    return next((width for width in (1, 2, 4, 8) if count <= width), -(-count // 8) * 8)
