"""What analyze says of groups is what prune will find."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from randomise import randomise, zero_filters
from zoo.user_models import MODELS

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.errors import CheckpointError


@pytest.mark.parametrize("name", ["LiteralView", "ExpandedByNumber"])
def test_what_only_a_trial_cut_finds_is_reported(name: str) -> None:
    facts = prunecli.analyze(MODELS[name](), prunecli.Opening.like(torch.zeros(1, 3, 8, 8)))
    group = next(g for g in facts.groups if "stem.weight[0]" in g.members)
    assert group.frozen.startswith("the cut model does not run")


def test_groups_of_a_file_that_fills_in_constants(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = zero_filters(randomise(build(parse("cifar_resnet20"))), 0.5)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    facts = {}
    for mode in ("off", "always"):
        path = tmp_path / f"{mode}.safetensors"
        prunecli.prune(prunecli.load_recipe("strip", [f"strip.expand={mode}"]), str(tmp_path / "m.pt"), path)
        facts[mode] = prunecli.analyze(str(path))
    assert facts["always"].flops < facts["off"].flops
    off, always = ({group.name: group for group in facts[mode].groups} for mode in ("off", "always"))
    assert off.keys() == always.keys()
    for name, group in always.items():  # of constants under padding none is left, without borders one
        assert off[name].channels - 1 <= group.channels <= off[name].channels
        assert [m for m in group.members if "bias_taps" not in m] == off[name].members
    assert any(not group.frozen for group in facts["always"].groups)


def test_a_file_may_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        prunecli.analyze(tmp_path / "conv:nowhere.pt")
