"""A forward pass beside a tape: all that differs is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunecli.graph.copying import shadow
from prunecli.graph.follow import follows
from prunecli.graph.tape import Example, record

EXAMPLE = Example((torch.zeros(2, 3, 6, 6),))


class Written(nn.Module):
    """Two layers, and what happens to what they give."""

    def __init__(self, last: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3, bias=False)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x), self.second(x)).flatten(1)


def plain(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).relu() * 0.5


def scaled(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).relu() * 0.25


def swapped(a: Tensor, b: Tensor) -> Tensor:
    return (b - a).relu() * 0.5


def other(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).sigmoid() * 0.5


def more(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b).relu() * 0.5).relu()


def fewer(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).relu()


def wider(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b).relu() * 0.5)[:, :, :2]


def fails(a: Tensor, b: Tensor) -> Tensor:
    raise KeyError("no")


def another(a: Tensor, b: Tensor) -> Tensor:
    """The same ops, but an earlier value is returned."""
    first = (a - b).relu()
    first * 0.5
    return first


def seen(module: nn.Module) -> bool:
    tape = record(Written(plain), EXAMPLE)
    numbers = range(len(tape.shapes))
    return follows(shadow(module), EXAMPLE, tape, tape.shapes, seen=numbers, told={"aten.view": 1})


def test_what_does_the_same_follows() -> None:
    """In any mode, and whatever its weights are."""
    assert seen(Written(plain))
    assert seen(Written(lambda a, b: (a - b).relu() * 0.5).train())


@pytest.mark.parametrize("last", [scaled, swapped, other, more, fewer, wider, fails, another])
def test_what_differs_is_seen(last: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert not seen(Written(last))


def test_other_numbers_of_a_layer_are_seen() -> None:
    module = Written(plain)
    module.first = nn.Conv2d(3, 8, 3, padding=1)
    module.second = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert not seen(module)


def test_sizes_are_those_that_are_asked() -> None:
    """A narrower module follows the tape of a wider one where it has the foreseen shapes, and only there."""
    module, narrow = Written(plain), Written(plain)
    narrow.first, narrow.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, bias=False)
    tape, shapes = (record(each, EXAMPLE) for each in (module, narrow))
    asked = {"seen": range(len(tape.shapes)), "told": {"aten.view": 1}}
    assert follows(shadow(narrow), EXAMPLE, tape, shapes.shapes, **asked)
    assert not follows(shadow(narrow), EXAMPLE, tape, tape.shapes, **asked)
    assert not follows(shadow(narrow), EXAMPLE, tape, shapes.shapes, seen=asked["seen"], told={})
