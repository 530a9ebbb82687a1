"""Equality is insisted on, and what keeps it from being shown is named."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from prunecli.errors import VerificationError
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.surgery.verify import verify

EXAMPLE = random_example(Example((torch.zeros(1, 4, dtype=torch.float64),)), 0)


class Noisy(nn.Module):
    """One that draws as many numbers as it has channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x + torch.randn_like(x))


class Dice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * random.random()


def test_another_model_is_refused() -> None:
    with pytest.raises(VerificationError, match="differs from the masked one"):
        verify(nn.Linear(4, 2).double(), nn.Linear(4, 2).double(), [EXAMPLE])


def test_what_torch_draws_is_the_same_for_both() -> None:
    module, state = Noisy(3).double(), torch.get_rng_state()
    assert verify(module, copy.deepcopy(module), [EXAMPLE]).max_abs_error == 0
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(("first", "second"), [(Noisy(4), Noisy(3)), (Dice(), Dice())])
def test_random_outputs_are_named(first: nn.Module, second: nn.Module) -> None:
    with pytest.raises(VerificationError, match="other outputs for the same input"):
        verify(first.double(), second.double(), [EXAMPLE])


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


def test_outputs_that_are_not_finite_are_named() -> None:
    """A weight norm whose direction is zero divides by zero: every weight is finite, no output is."""
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))).eval()
    module[0].parametrizations.weight.original1.data.zero_()
    with pytest.raises(VerificationError, match="nothing but numbers that are not finite"):
        verify(module, module, [Example((torch.randn(2, 3),))])
