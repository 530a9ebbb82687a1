"""Parametrizations of weights that several layers share."""

from __future__ import annotations

import pytest
import torch
from courses import course
from torch import nn
from torch.nn.utils import parametrize

from prunecli.methods.gumbel import GumbelMasks
from prunecli.methods.gumbel_masks import WeightMasks
from prunecli.methods.hook import Hook
from prunecli.methods.thresholds import Thresholds
from prunecli.methods.wrapping import bake, wrap

HOOKS = {
    "str": lambda: Thresholds(["1.weight", "3.weight"], 0.5, -5.0, 0.75),
    "gumbel": lambda: WeightMasks(GumbelMasks(name="gumbel"), ["1.weight", "3.weight"], 0.5),
}
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def tied() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)]
    layers[5].weight = layers[1].weight
    return nn.Sequential(*layers).eval()


def test_insertion_changes_no_output() -> None:
    module = tied().double()
    expected = module(IMAGES.double())
    HOOKS["str"]().attach(module, course(10))
    torch.testing.assert_close(module(IMAGES.double()), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", HOOKS)
def test_layers_that_share_a_weight_share_what_is_left_of_it(name: str) -> None:
    module, hook = tied(), HOOKS[name]()
    assert isinstance(hook, Hook)
    hook.attach(module, course(10))
    hook.after_step(module, 10)
    hook.finalize(module)
    found = module(IMAGES)
    assert module[5].weight is module[1].weight
    assert not parametrize.is_parametrized(module)
    assert 0.4 < float((module[1].weight == 0).double().mean()) < 0.6
    plain = tied()
    plain.load_state_dict(module.state_dict())
    assert torch.equal(plain(IMAGES), found)


def test_a_weight_may_be_wrapped_twice() -> None:
    class Times(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * self.factor

    module = tied()
    whole = module[1].weight.detach().clone()
    for factor in (2.0, 3.0):
        wrap(module, "1.weight", Times(factor))
    assert torch.equal(module[5].weight, whole * 2 * 3)
    bake(module, ["1.weight", "1.weight"])
    assert torch.equal(module[1].weight, whole * 2 * 3)
    assert module[5].weight is module[1].weight
