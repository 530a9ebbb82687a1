"""The table of `benchmarks/coverage.py` and `benchmarks/flops.py`, pinned: what can be pruned, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision

from prunecli.arch.spec import parse
from prunecli.cost.count import MULTIPLY_ADDS, flops
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example, output_tensors
from prunecli.model import blank, open_model
from prunecli.surgery.apply import cut
from prunecli.surgery.probe import halves, survey

# Share of the parameters that must go when every group is halved: the others are reached, too, but coupled.
LEFT = {
    "resnet50": 0.30, "mobilenet_v3_large": 0.40, "densenet121": 0.35, "shufflenet_v2_x1_0": 0.60, "googlenet": 0.40,
    "inception_v3": 0.35, "efficientnet_b0": 0.40, "regnet_y_400mf": 0.40, "convnext_tiny": 0.60, "swin_t": 0.75,
    "swin_v2_t": 0.75, "maxvit_t": 0.65, "vit_b_32": 0.60, "mvit_v2_s": 0.72, "r3d_18": 0.30, "s3d": 0.35,
    "deeplabv3_mobilenet_v3_large": 0.35, "lraspp_mobilenet_v3_large": 0.35, "raft_small": 0.70,
    "ssdlite320_mobilenet_v3_large": 0.45,
}  # fmt: skip


@pytest.mark.zoo
@pytest.mark.parametrize("name", LEFT)
def test_halved_it_runs_with_the_same_outputs(name: str) -> None:
    model = open_model(f"torchvision:{name}")
    channels = survey(model.module, model.example)
    smaller, _ = cut(model.module, channels, halves(channels))
    left, whole = (sum(p.numel() for p in m.parameters()) for m in (smaller, model.module))
    assert left <= LEFT[name] * whole
    with torch.no_grad():
        shapes = [[t.shape for t in output_tensors(m(*model.example.args))] for m in (model.module, smaller)]
    assert channels.tape.needs_data or shapes[0] == shapes[1]


ROUNDED = {"mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mobilenet_v3_large", "mobilenet_v3_small", "shufflenet_v2_x0_5"}


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_multiply_adds_are_those_of_the_metadata(name: str) -> None:
    size = lambda weights: weights.transforms.keywords["crop_size"]  # noqa: E731
    weights = min(torchvision.models.get_model_weights(name), key=size)
    module = blank(parse(f"torchvision:{name}")).eval()
    channels = trace(module, Example((torch.zeros(1, 3, size(weights), size(weights), device="meta"),)))
    found = flops(channels, MULTIPLY_ADDS)(np.ones(channels.count, dtype=bool))
    stated = weights.meta["_ops"] * 1e9
    assert found == pytest.approx(stated, rel=1e-3, abs=5e5 if name in ROUNDED else 0)
