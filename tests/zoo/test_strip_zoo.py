"""Strip on full networks: batch norm randomised, half of every convolution's filters zeroed independently."""

from __future__ import annotations

import copy

import pytest
import torch
from randomise import randomise, zero_filters
from torch import nn

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.surgery.strip import Stripped, strip
from prunecli.surgery.verify import compare

# Input size: small enough for two cores, large enough for every stride.
NETS = {
    "cifar_resnet20": 32,
    "torchvision:resnet18": 64,
    "torchvision:resnet50": 64,
    "torchvision:mobilenet_v2": 64,
    "torchvision:vgg16_bn": 64,
    "torchvision:densenet121": 64,
    "torchvision:shufflenet_v2_x1_0": 64,
    "torchvision:resnext50_32x4d": 64,
    "torchvision:regnet_x_400mf": 64,
    "torchvision:efficientnet_b0": 64,
    "torchvision:squeezenet1_1": 64,
    "torchvision:googlenet": 64,
}


def hard(name: str) -> nn.Module:
    """A fixed seed for the weights too."""
    torch.manual_seed(0)
    return zero_filters(randomise(build(parse(name))), 0.5).eval()


def stripped(name: str) -> tuple[nn.Module, Stripped, Example]:
    module = hard(name).double()
    example = Example((torch.zeros(1, 3, NETS[name], NETS[name], dtype=torch.float64),))
    return module, strip(module, example), example


@pytest.mark.zoo
@pytest.mark.parametrize("name", NETS)
def test_strip_is_exact(name: str) -> None:
    module, result, example = stripped(name)
    assert sum(p.numel() for p in result.module.parameters()) < sum(p.numel() for p in module.parameters())
    tests = [
        random_example(example, 0),
        random_example(Example((torch.zeros(1, 3, NETS[name] + 32, NETS[name] + 32),)), 1),
    ]
    assert compare(module, result.module, tests, torch.float64).max_rel_error <= 1e-12
    single = copy.deepcopy(result.module).float()
    assert compare(module, single, tests, torch.float32).max_rel_error <= 1e-5
