"""Experts whose rows meet their matrices in one grouped product, as transformers computes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunecli
from prunecli.cost.count import flops
from prunecli.cost.measure import count_flops
from prunecli.graph.tape import Example
from prunecli.recipe.load import validate
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.probe import halves, survey
from prunecli.surgery.verify import compare


def runs() -> bool:
    """Whether this torch has the product for float32 on the CPU, wherever tensors of a file start; 2.11 has not."""
    within = torch.ones(65)[1:].reshape(1, 8, 8)
    try:
        torch._grouped_mm(torch.ones(8, 8), within, offs=torch.tensor([8], dtype=torch.int32))
    except (AttributeError, RuntimeError):
        return False
    return True


pytestmark = pytest.mark.skipif(not runs(), reason="this torch has no grouped product of float32 on the CPU")


class Experts(nn.Module):
    """(N, 16) -> (N, 3): each row goes to the expert with its number modulo 4, gated as in Mixtral."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 96, 32) / 6), nn.Parameter(torch.randn(4, 32, 48) / 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        count = len(x) // 4
        ends = torch.arange(count, 4 * count + 1, count, dtype=torch.int32, device=x.device)
        gate, value = torch._grouped_mm(x, self.up.transpose(1, 2), offs=ends).chunk(2, 1)
        return self.last(torch._grouped_mm(F.silu(gate) * value, self.down.transpose(1, 2), offs=ends))


def experts() -> tuple[nn.Module, Example]:
    torch.manual_seed(0)
    return Experts().eval(), Example((torch.randn(8, 16),))


def test_they_lose_inputs_and_inner_channels() -> None:
    module, example = experts()
    channels = survey(module, example)
    removed = halves(channels)
    smaller, _ = cut(module, channels, removed)
    assert smaller.up.shape == (4, 48, 16)
    assert smaller.down.shape == (4, 16, 24)
    assert compare(masked(module, channels, removed), smaller, [example], torch.float32).max_rel_error < 1e-5


def test_every_product_is_counted_once() -> None:
    module, example = experts()
    channels = survey(module, example)
    by_hand = 8 * (16 * 32 + 32 * 96 + 48 * 32 + 32 * 3)
    assert flops(channels)(~channels.frozen | True) == count_flops(module, example) == by_hand


@pytest.mark.parametrize("share", [0.4, 0.55, 0.8])
def test_widths_fill_what_the_kernel_steps_by(share: float, tmp_path: Path) -> None:
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": share}})
    module, example = experts()
    facts = prunecli.prune(recipe, module, tmp_path / "o.safetensors", prunecli.Opening.like(*example.args))
    smaller = prunecli.load(tmp_path / "o.safetensors", into=Experts())
    assert facts.budget
    assert share - 0.2 < facts.budget.met <= share
    assert all(size % 8 == 0 for weight in (smaller.up, smaller.down) for size in weight.shape[1:])
    assert {(c.group, c.before) for c in facts.cuts} <= {("first", 32), ("", 96), ("last", 3)}
