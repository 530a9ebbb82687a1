"""Equality is insisted on, and what keeps it from being shown is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunecli.errors import VerificationError
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.surgery.verify import verify

EXAMPLE = random_example(Example((torch.zeros(1, 4, dtype=torch.float64),)), 0)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + torch.randn_like(x))


def test_another_model_is_refused() -> None:
    with pytest.raises(VerificationError, match="differs from the masked one"):
        verify(nn.Linear(4, 2).double(), nn.Linear(4, 2).double(), [EXAMPLE])


def test_random_outputs_are_named() -> None:
    with pytest.raises(VerificationError, match="other outputs for the same input"):
        verify(Noisy().double(), Noisy().double(), [EXAMPLE])


def test_weights_that_are_not_finite_are_named() -> None:
    broken = nn.Linear(4, 2).double()
    broken.weight.data[1, 2] = torch.nan
    broken.bias.data[:] = torch.inf
    with pytest.raises(VerificationError, match="weight holds numbers that are not finite"):
        verify(broken, broken, [EXAMPLE])


def test_integers_have_the_batch_of_the_others() -> None:
    mixed = Example((torch.zeros(1, 4), torch.ones(1, 3, dtype=torch.int64), torch.tensor(5)))
    floats, integers, number = random_example(mixed, 0, batch=3).args
    assert (floats.shape, integers.shape, number.shape) == ((3, 4), (3, 3), ())
    assert integers.eq(1).all()
