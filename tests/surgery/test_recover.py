"""Recovery: exact where a removed channel is a combination of others, statistics by closed form, nothing else moves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from randomise import randomise
from torch import nn
from zoo.user_models import MODELS

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.surgery.apply import cut
from prunecli.surgery.border import border
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import halves, survey
from prunecli.surgery.recover import recalibrate, refit

PICTURES = torch.randn(16, 3, 8, 8)


def images():  # type: ignore[no-untyped-def]
    yield from PICTURES.split(8)


def test_statistics_are_those_of_the_images() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = copy.deepcopy(module.state_dict())
    found = recalibrate(module, images)
    halves = [module[0](half).detach() for half in PICTURES.split(8)]
    mean = torch.stack([h.mean((0, 2, 3)) for h in halves]).mean(0)
    var = torch.stack([h.var((0, 2, 3)) for h in halves]).mean(0)
    torch.testing.assert_close(found[1].running_mean, mean)
    torch.testing.assert_close(found[1].running_var, var)
    assert found[1].momentum == 0.1
    assert not found.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def with_border() -> nn.Module:
    layer = border(nn.Conv2d(6, 5, 3, padding=1), [""])
    nn.init.normal_(layer.bias_taps)
    return layer


@pytest.mark.parametrize(
    "reader", [nn.Conv2d(6, 5, 3, padding=1, stride=2), nn.Conv2d(6, 5, 1, bias=False), with_border()]
)
def test_a_channel_that_others_make_up_costs_nothing(reader: nn.Module) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), reader).eval()
    with torch.no_grad():  # channel 5 is a combination of 0 and 1
        module[0].weight[5] = 2 * module[0].weight[0] - module[0].weight[1]
        module[0].bias[5] = 2 * module[0].bias[0] - module[0].bias[1]
    example = Example((PICTURES[:1],))
    channels = trace(module, example)
    slot = next(s for s in channels.slots if (s.name, s.dim) == ("0.weight", 0))
    removed = np.zeros(channels.count, dtype=bool)
    removed[slot.channels[5]] = True
    smaller, journal = cut(module, channels, removed)
    fitted = refit(module, smaller, journal, images).module
    expected = module(PICTURES)
    assert (smaller(PICTURES) - expected).abs().max() > 0.05
    assert (fitted(PICTURES) - expected).abs().max() < 5e-3


def test_it_never_fits_worse_than_it_was() -> None:
    torch.manual_seed(0)
    module = randomise(build(parse("cifar_resnet20")))
    pictures = torch.randn(96, 3, 16, 16)
    channels = trace(module, Example((pictures[:1],)))
    removed = repair(channels, np.random.default_rng(0).random(channels.count) < 0.3)
    smaller, journal = cut(module, channels, removed)
    fitted = refit(module, smaller, journal, lambda: iter([pictures])).module
    expected = module(pictures)
    errors = [(m(pictures) - expected).square().mean() for m in (smaller, fitted)]
    assert errors[1] < 0.7 * errors[0]


class Odd(nn.Module):
    """Attention that reads the weight of a linear layer itself, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(8, 2, 64, batch_first=True, dropout=0.0)
        self.inner, self.twice, self.out = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.twice(self.twice(self.inner(self.attention(x[:, 0]))).relu()).relu())


def test_layers_that_run_twice_or_not_by_themselves() -> None:
    torch.manual_seed(0)
    module = Odd().eval()
    channels = survey(module, Example((PICTURES[:1],)))
    smaller, journal = cut(module, channels, halves(channels))
    assert {("attention.self_attn.out_proj.weight", 1), ("twice.weight", 1)} <= journal.kept.keys()
    fitted = refit(module, smaller, journal, lambda: iter([PICTURES])).module
    expected = module(PICTURES)
    errors = [(m(PICTURES) - expected).square().mean() for m in (smaller, fitted)]
    assert errors[1] < errors[0]


def test_experts_that_read_other_rows_after_a_cut_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    module = MODELS["Experts"]().eval()
    channels = survey(module, Example((PICTURES[:1],)))
    smaller, journal = cut(module, channels, halves(channels))
    fitted = refit(module, smaller, journal, lambda: iter([torch.randn(64, 3, 8, 8)])).module
    assert {n: t.shape for n, t in fitted.state_dict().items()} == {n: t.shape for n, t in smaller.state_dict().items()}


def test_widths_and_names_stay() -> None:
    module = randomise(build(parse("cifar_resnet20")))
    channels = trace(module, Example((torch.zeros(1, 3, 32, 32),)))
    removed = repair(channels, np.random.default_rng(0).random(channels.count) < 0.3)
    smaller, journal = cut(module, channels, removed)
    fitted = refit(module, smaller, journal, lambda: iter([torch.randn(8, 3, 32, 32)])).module
    assert {n: t.shape for n, t in fitted.state_dict().items()} == {n: t.shape for n, t in smaller.state_dict().items()}


@pytest.mark.parametrize(("images", "left"), [(64, ["1"]), (66, [])])
def test_layers_that_see_too_little_are_named(images: int, left: list[str]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 3)).eval()
    channels = trace(module, Example((torch.zeros(1, 8),)))
    smaller, journal = cut(module, channels, halves(channels))
    found = refit(module, smaller, journal, lambda: iter([torch.randn(images, 8)]))
    assert list(found.left) == left
    assert all("64 places of the images are fewer" in reason for reason in found.left.values())
    assert torch.equal(found.module[1].weight, smaller[1].weight) == bool(left)


@pytest.mark.parametrize(
    ("reader", "shape", "why"),
    [
        (nn.Conv1d(4, 3, 1), (4, 9), "are fitted"),
        (nn.Conv2d(4, 4, 1, groups=2), (4, 3, 3), "are fitted"),
        (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), (4, 3, 3), "are fitted"),
        (nn.Conv2d(4, 3, 64), (4, 64, 64), "more than 6,144"),
    ],
)
def test_readers_that_cannot_be_fitted_are_named(reader: nn.Module, shape: tuple[int, ...], why: str) -> None:
    kind = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    module = nn.Sequential(kind(4, 4, 1), reader).eval()
    x = torch.randn(2, *shape)
    channels = trace(module, Example((x[:1],)))
    smaller, journal = cut(module, channels, halves(channels))
    found = refit(module, smaller, journal, lambda: iter([x]))
    assert why in found.left["1"]
    assert torch.equal(found.module(x), smaller(x))
