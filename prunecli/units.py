"""Amounts as people write them: ``50%``, ``1.2G``, ``2MB``, ``3 ms``."""

from __future__ import annotations

import re

_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_AMOUNT = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z%]*)\s*$", re.IGNORECASE)


def parse_amount(text: str | float) -> float:
    """Return the number that `text` stands for, in units, bytes or seconds.

    >>> parse_amount("50%"), parse_amount("20M"), parse_amount("2MB"), parse_amount("3 ms")
    (0.5, 20000000.0, 2000000.0, 0.003)

    Raises:
        ValueError: `text` is not a number with a known suffix.
    """
    if isinstance(text, int | float):
        return float(text)
    match = _AMOUNT.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount such as 0.5, 50%, 20M, 2MB or 3ms")
    number, suffix = float(match[1]), match[2].lower()
    if suffix == "%":
        return number / 100
    for table in (_SCALE, _BYTES, _SECONDS):
        if suffix in table:
            return number * table[suffix]
    raise ValueError(
        f"{text!r}: unknown suffix {match[2]!r} (known: %, k, M, G, T, B, kB, MB, GB, KiB, MiB, GiB, ms, s)"
    )


def human(number: float) -> str:
    """Four significant digits with a decimal suffix.

    >>> human(40927872), human(269722), human(640)
    ('40.93M', '269.7k', '640')
    """
    for suffix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.4g}{suffix}"
    return f"{number:.4g}"


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage with two decimals.

    >>> percent(0.8103)
    '81.03 %'
    """
    return f"{100 * share:.2f} %"


def parse_shape(text: str) -> tuple[int, ...]:
    """Sizes with ``x`` between them.

    >>> parse_shape("1x3x32x32")
    (1, 3, 32, 32)

    Raises:
        ValueError: `text` is anything else.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise ValueError(f"{text!r} is not a shape such as 1x3x32x32")
    return tuple(int(size) for size in text.split("x"))
