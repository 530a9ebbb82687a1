"""Methods that train or look at data, on every network of the user zoo: refused with a reason, or the budget is met."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from zoo.user_models import MODELS

import prunecli
from prunecli.errors import InputError
from prunecli.recipe.load import validate

pytestmark = pytest.mark.zoo

FEW = {"epochs": 1, "batch_size": 128, "lr": 0.01}
METHODS = {
    "str": {"method": {"name": "str"}, "budget": {"sparsity": 0.8}},
    "str channels": {"method": {"name": "str", "structure": "channel", "s_init": -4, "ramp": 0.5}},
    "str ranks": {"method": {"name": "str", "structure": "rank"}, "budget": {"params": 0.8}},
    "grda": {"method": {"name": "grda"}, "budget": {"sparsity": 0.8}},
    "gumbel": {"method": {"name": "gumbel"}, "budget": {"sparsity": 0.8}},
    "gumbel channels": {"method": {"name": "gumbel", "structure": "channel"}},
    "ftwt": {"method": {"name": "ftwt"}},
    "magnitude": {"method": {"name": "magnitude"}, "recover": {}, "strip": {"fold_batchnorm": True}},
    "taylor": {"method": {"name": "taylor"}, "train": {**FEW, "distill": {}, "ema": 0.9}},
    "synflow": {"method": {"name": "synflow", "structure": "weight"}, "budget": {"sparsity": 0.8}, "train": None},
    "selfsup": {"method": {"name": "selfsup", "fraction": 0.7, "pretext": FEW}, "budget": {"sparsity": 0.8}},
}
NO_CLASSIFIERS = {"FakeQuantised", "Packed", "RegionsOfInterest", "WrittenTokens"}  # of float32 images in batches
REASONS = "cannot be met|no prunable channel|no channel goes with its batch norms|no convolution can be gated"


@pytest.mark.parametrize("name", METHODS)
def test_all_networks(name: str, tmp_path: Path) -> None:
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    fields = {"version": 1, "data": "fake:3x8x8", "train": FEW, "budget": {"flops": 0.75}}
    recipe, output = validate({**fields, **METHODS[name]}), tmp_path / "o.safetensors"
    refused: dict[str, str] = {}
    networks = [network for network in MODELS if network not in NO_CLASSIFIERS]
    for network in networks:
        torch.manual_seed(0)
        try:
            facts = prunecli.prune(recipe, MODELS[network](), output, takes)
        except InputError as error:
            refused[network] = error.problem
            continue
        assert facts.verified.max_rel_error < 1e-12, network
        prunecli.load(output, into=MODELS[network]())
    assert not {network: said for network, said in refused.items() if not re.search(REASONS, said)}
    assert len(refused) < len(networks)
