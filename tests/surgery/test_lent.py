"""Layers whose weights somebody else reads as well stay as they are: what changes them changes more than the layer."""

from __future__ import annotations

import numpy as np
import torch
from randomise import randomise, zero_filters
from torch import nn
from zoo.user_models import MODELS

from prunecli.graph.channels import trace
from prunecli.graph.tape import Example, record
from prunecli.surgery.apply import cut
from prunecli.surgery.expand import expand
from prunecli.surgery.fold import fold_batchnorm
from prunecli.surgery.gates import candidates
from prunecli.surgery.plan import repair
from prunecli.surgery.recover import SHARED, refit

EXAMPLE = Example((torch.rand(2, 3, 8, 8, dtype=torch.float64),))


def net() -> nn.Module:
    torch.manual_seed(0)
    return zero_filters(randomise(MODELS["WeightsRead"]()), 0.5).double().eval()


def test_who_lends() -> None:
    assert record(net(), EXAMPLE).lent() == {"conv", "coder"}
    assert record(MODELS["SharedFilters"](), Example((torch.zeros(1, 3, 8, 8),))).lent() == {"first"}
    assert not record(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), Example((torch.zeros(1, 3),))).lent()


def test_they_are_not_expanded_folded_or_gated() -> None:
    module = net()
    expanded, journal = expand(module, EXAMPLE, "always")
    assert list(journal.expansions) == ["stem"]
    folded, journal = fold_batchnorm(module, EXAMPLE)
    assert not journal.folded
    for other in (expanded, folded):
        torch.testing.assert_close(other(*EXAMPLE.args), module(*EXAMPLE.args), atol=1e-14, rtol=0)
    assert not [candidate.gate.conv for candidate in candidates(module, EXAMPLE)]


def test_they_are_not_fitted() -> None:
    module = net()
    channels = trace(module, EXAMPLE)
    removed = repair(channels, np.random.default_rng(0).random(channels.count) < 0.4)
    smaller, journal = cut(module, channels, removed)
    pictures = torch.rand(64, 3, 8, 8, dtype=torch.float64)
    left = refit(module, smaller, journal, lambda: iter([pictures])).left
    assert {name for name, reason in left.items() if reason == SHARED} == {"conv", "coder"}
