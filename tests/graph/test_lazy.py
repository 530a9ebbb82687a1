"""Lazy layers are opened from files, filled in place and left alone in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import prunecli
from prunecli.errors import InputError
from prunecli.inputs import parse_inputs
from prunecli.recipe.load import validate

NET = """
from torch import nn

def build():
    return nn.Sequential(
        nn.LazyConv2d(16, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.LazyLinear(5)
    )

def looks():
    return Looks(build())

class Looks(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) < 1e9 else x
"""
TAKES = parse_inputs("1x3x8x8")
RECIPE = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}})


def awake(build: object) -> nn.Module:
    torch.manual_seed(0)
    module = build().eval()
    module(torch.randn(2, 3, 8, 8))
    for buffer in module.buffers():
        if buffer.ndim:
            nn.init.uniform_(buffer, 0.5, 2)
    return module


@pytest.mark.parametrize("factory", ["build", "looks"])
def test_from_a_checkpoint_to_a_smaller_file(factory: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    names: dict[str, object] = {}
    exec(NET, names)
    whole, arch = awake(names[factory]), f"{tmp_path / 'net.py'}:{factory}"
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    opening = prunecli.Opening(arch=arch, inputs=TAKES)
    facts = prunecli.prune(RECIPE, str(tmp_path / "whole.pt"), tmp_path / "small.safetensors", opening)
    assert facts.verified is not None
    assert facts.verified.max_rel_error < 1e-12
    small = prunecli.load(tmp_path / "small.safetensors", arch=arch)
    filled = prunecli.load(tmp_path / "small.safetensors", into=names[factory]())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(small(x), filled(x))
    same = prunecli.load(tmp_path / "whole.pt", into=awake(names[factory]))
    assert torch.equal(same(x), whole(x))


def test_without_values_it_is_refused_in_memory(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(InputError, match=r"1\.weight has no values yet"):
        prunecli.prune(RECIPE, module, tmp_path / "o.safetensors", prunecli.Opening(inputs=TAKES))
    assert isinstance(module[1], nn.LazyLinear)


def test_with_the_values_of_a_file_it_knows_its_widths(tmp_path: Path) -> None:
    names: dict[str, object] = {}
    exec(NET, names)
    module = names["build"]()
    module.load_state_dict(awake(names["build"]).state_dict())
    facts = prunecli.prune(RECIPE, module, tmp_path / "o.safetensors", prunecli.Opening(inputs=TAKES))
    assert facts.after.params < facts.before.params
    assert isinstance(module[5], nn.LazyLinear)  # the user's own stays as it is
