"""The tensors that a forward pass takes, as text and as JSON. No torch here.

``1x3x224x224``; several in the order of the arguments, with a dtype where they are not of the parameters' own, and
with the integer that they hold where that is not 0: ``1x16:int64,1:int64=16``. A number by itself has no sizes:
``:int64=7``; ``float`` is the dtype of the parameters, said where sizes alone would look like a shape gone wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prunecli.units import parse_shape

INTEGERS = {"bool": 1, "int8": 2**7 - 1, "uint8": 2**8 - 1, "int16": 2**15 - 1, "int32": 2**31 - 1, "int64": 2**63 - 1}
OWN = "float"  # the dtype of the parameters
DTYPES = frozenset({OWN, "float16", "bfloat16", "float32", "float64", *INTEGERS})
LARGEST = 2**28  # numbers in one tensor; a file that asks for more is damaged or hostile


@dataclass(frozen=True)
class Argument:
    """One tensor: its shape, batch included, its dtype, that of the parameters where it is empty, and what it holds."""

    shape: tuple[int, ...]
    dtype: str = ""
    value: int = 0

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        held = f"={self.value}" if self.value else ""
        dtype = self.dtype or (OWN if len(self.shape) < 2 else "")
        return f"{shape}:{dtype}{held}" if dtype else shape


Inputs = tuple[Argument, ...]


def parse_inputs(text: str) -> Inputs:
    """One argument after another. Among several, a number alone needs a dtype: ``3,32,32`` is a shape gone wrong.

    >>> parse_inputs("1x16:int64,1x4")
    (Argument(shape=(1, 16), dtype='int64', value=0), Argument(shape=(1, 4), dtype='', value=0))

    Raises:
        ValueError: `text` is anything else.
    """
    parts = text.split(",")
    if len(parts) > 1 and any(part.isdecimal() for part in parts):
        raise ValueError(f"{text!r} is not a shape such as 1x3x32x32")
    return tuple(_argument(part) for part in parts)


def _argument(text: str) -> Argument:
    shape, colon, kind = text.partition(":")
    dtype, equals, value = kind.partition("=")
    if colon and dtype not in DTYPES:
        raise ValueError(f"{text!r}: unknown dtype {dtype!r} (known: {', '.join(sorted(DTYPES))})")
    if equals and not (value.isdecimal() and int(value) <= INTEGERS.get(dtype, -1)):
        raise ValueError(f"{text!r}: {value!r} is no value of dtype {dtype}; 2:int64=5 holds 5")
    sizes = parse_shape(shape) if shape or not colon else ()
    return Argument(sizes, "" if dtype == OWN else dtype, int(value or 0))


def shown(inputs: Inputs) -> str:
    """As `parse_inputs` reads it."""
    return ",".join(map(str, inputs))


def to_json(inputs: Inputs) -> list[int] | str:
    """The sizes where there is one tensor in the dtype of the parameters, text otherwise."""
    return list(inputs[0].shape) if len(inputs) == 1 and not inputs[0].dtype else shown(inputs)


def from_json(value: Any) -> Inputs:
    """What `to_json` gave.

    Raises:
        TypeError, ValueError: it gives no such thing, or asks for tensors that no machine holds.
    """
    inputs = parse_inputs(value) if isinstance(value, str) else (Argument(tuple(int(size) for size in value)),)
    if not all(0 < math.prod(argument.shape) <= LARGEST and all(n > 0 for n in argument.shape) for argument in inputs):
        raise ValueError(f"an input of {value}")
    return inputs
