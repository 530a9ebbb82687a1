"""The solver's count is fvcore's, to the last FLOP, whole and cut."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import deform_conv2d

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.cost.count import MULTIPLY_ADDS, flops, params
from prunecli.cost.measure import count_flops, flops_by_op
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.surgery.apply import cut
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import settle

NETS = {
    "cifar_resnet20": (3, 32), "digits_net": (1, 8), "conv4": (3, 32), "cifar_mobilenet_v1": (3, 32),
    "torchvision:mobilenet_v2": (3, 64), "torchvision:shufflenet_v2_x0_5": (3, 64),
    "torchvision:squeezenet1_1": (3, 64), "torchvision:mobilenet_v3_small": (3, 64),
    "torchvision:vit_b_32": (3, 224),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_counted_equals_measured(name: str) -> None:
    module = build(parse(name)).eval()
    channels_in, size = NETS[name]
    example = Example((torch.zeros(1, channels_in, size, size),))
    channels = settle(module, example, trace(module, example))
    counted, weights = flops(channels), params(channels, [n for n, _ in module.named_parameters()])
    everything = np.ones(channels.count, dtype=np.bool_)
    assert counted(everything) == count_flops(module, example)
    assert weights(everything) == sum(p.numel() for p in module.parameters())
    removed = repair(channels, np.random.default_rng(0).random(channels.count) < 0.5)
    assert removed.any()
    smaller, _ = cut(module, channels, removed)
    assert counted(~removed) == count_flops(smaller, example)
    assert weights(~removed) == sum(p.numel() for p in smaller.parameters())


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.layer = kind(6, 10, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0].sum(-1)


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        (Recurrent(nn.LSTM), 40 * (6 + 10)),
        (Recurrent(nn.GRU, num_layers=2, bidirectional=True), 2 * 30 * (6 + 10) + 2 * 30 * (20 + 10)),
        (Recurrent(nn.RNN, bias=False, batch_first=True), 10 * (6 + 10)),
        (Recurrent(nn.LSTM, proj_size=4), 40 * (6 + 4) + 4 * 10),
    ],
)
def test_every_matrix_of_a_recurrent_layer_meets_every_step(layer: nn.Module, weights: int) -> None:
    example = Example((torch.zeros(3, 5, 6),))
    channels = trace(layer, example)
    assert count_flops(layer, example) == flops(channels)(np.ones(channels.count, dtype=bool)) == 3 * 5 * weights


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.weight = nn.Conv2d(4, 18, 3, padding=1), nn.Parameter(torch.ones(6, 4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return deform_conv2d(x, self.offset(x), self.weight, padding=1)


def test_every_weight_of_a_deformed_convolution_meets_every_place() -> None:
    layer, example = Deformed(), Example((torch.zeros(2, 4, 5, 5),))
    channels = trace(layer, example)
    expected = 2 * 5 * 5 * (18 * 4 * 9 + 6 * 4 * 9)
    assert count_flops(layer, example) == flops(channels)(np.ones(channels.count, dtype=bool)) == expected


def test_counting_leaves_the_mode_and_the_statistics() -> None:
    module = build(parse("digits_net")).train()
    module.stem.eval()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    count_flops(module, Example((torch.zeros(2, 1, 8, 8),)))
    assert module.training
    assert not module.stem.training
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


class Attended(nn.Module):
    """A fused attention and an einsum, beside layers that fvcore knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return torch.einsum("nlc,nmc->nlm", torch.nn.functional.scaled_dot_product_attention(y, y, y), y)


def test_flops_are_told_apart_by_op() -> None:
    counted = flops_by_op(Attended().eval(), Example((torch.zeros(2, 3, 4, 4),)))
    assert counted == {
        "scaled_dot_product_attention": 2 * 2 * 16 * 16 * 8,
        "einsum": 2 * 16 * 16 * 8,
        "conv": 2 * 3 * 8 * 16,
        "batch_norm": 2 * 2 * 8 * 16,
    }


def test_multiply_adds_are_counted_apart() -> None:
    channels = trace(Attended().eval(), Example((torch.zeros(2, 3, 4, 4),)))
    kept = np.ones(channels.count, dtype=bool)
    assert flops(channels, MULTIPLY_ADDS)(kept) == flops(channels)(kept) - 2 * 2 * 8 * 16


@dataclasses.dataclass
class Answer:
    scores: torch.Tensor
    name: str = "of no tensor"


class Told(Attended):
    def forward(self, x: torch.Tensor) -> Answer:
        return Answer(super().forward(x))


class Scripted(Attended):
    """TorchScript's tracer takes no hooks on such parts."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.conv = torch.jit.script(self.conv)


class Scaled(Attended):
    """A layer called with other weights than its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = {name: 2 * weight for name, weight in self.conv.named_parameters()}
        y = self.norm(torch.func.functional_call(self.conv, weights, (x,))).flatten(2).transpose(1, 2)
        return torch.einsum("nlc,nmc->nlm", torch.nn.functional.scaled_dot_product_attention(y, y, y), y)


@pytest.mark.parametrize("kind", [Told, Scripted, Scaled])
def test_what_torchscript_cannot_trace_is_counted_all_the_same(kind: type[Attended]) -> None:
    example = Example((torch.zeros(2, 3, 4, 4),))
    assert count_flops(kind().eval(), example) == count_flops(Attended().eval(), example)


class TwoSided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Bilinear(3, 5, 7)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.both(x, y)


def test_every_weight_of_a_bilinear_layer_meets_every_pair() -> None:
    example = Example((torch.zeros(2, 3), torch.zeros(2, 5)))
    assert flops_by_op(TwoSided(), example) == {"bilinear": 2 * 3 * 5 * 7}
    channels = trace(TwoSided(), example)
    assert flops(channels)(np.ones(channels.count, dtype=bool)) == 2 * 3 * 5 * 7
