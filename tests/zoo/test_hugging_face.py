"""transformers: MLP width and attention heads can go, and what is left equals the masked model."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from zoo.hugging_face import FAMILIES, NETWORKS, network

from prunecli.surgery.apply import cut, masked
from prunecli.surgery.probe import halves, survey
from prunecli.surgery.verify import compare

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

# A name that says attention, and one that says MLP, in every network; a convnet has no attention.
ATTENTION = ("attn", "attention")
MLP = ("fc", "intermediate", "mlp", "DenseReluDense", "pwconv", "dense")


def halved(name: str, *, through_norms: bool) -> tuple[float, list[str]]:
    """Check the cut of a network against its masked model; the share of params left, and what could go."""
    module, example = network(name)
    module, example = module.double(), example.to(dtype=torch.float64)
    channels = survey(module, example, through_norms=through_norms)
    removed = halves(channels)
    smaller, _ = cut(module, channels, removed)
    assert compare(masked(module, channels, removed), smaller, [example], torch.float64).max_rel_error < 1e-12
    left, whole = (sum(p.numel() for p in m.parameters()) for m in (smaller, module))
    return left / whole, [" ".join(channels.member_names(g)) for g in channels.groups if not g.frozen]


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_and_mlp_can_be_pruned(name: str) -> None:
    left, live = halved(name, through_norms=False)
    assert left < 0.85
    assert any(word in names for names in live for word in MLP)
    if name != "ConvNeXt":
        assert any(word in names.lower() for names in live for word in ATTENTION)


@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_can_be_sliced_where_asked(name: str) -> None:
    halved(name, through_norms=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_further_families_lose_something_and_break_nowhere(name: str) -> None:
    left, _ = halved(name, through_norms=False)
    assert left < 0.85
