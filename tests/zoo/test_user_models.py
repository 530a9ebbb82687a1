"""Nothing breaks, nothing changes: every odd model is traced, sliced, stripped and run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zoo.user_models import MODELS

import prunecli
from prunecli.arrays import Bools
from prunecli.errors import InputError
from prunecli.facts import PruneFacts
from prunecli.graph.channels import Channels, trace
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example, output_tensors
from prunecli.graph.tensors import named_tensors
from prunecli.recipe.load import validate
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.forecast import Forecast
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import as_written, halves, settle, survey
from prunecli.surgery.strip import strip
from prunecli.surgery.trial import inspected
from prunecli.surgery.verify import compare

EXAMPLE = Example((torch.zeros(1, 3, 8, 8, dtype=torch.float64),))
WHOLE = {
    "LiteralView", "Gathered", "ChannelAttention", "InPlaceSlices", "PlainList", "Wavy",
    "MultiHead", "DictOutput", "EncoderLayer", "LiteralGroups", "LiteralSplit", "LiteralParts",
    "ExpandedByNumber", "CountedChannels", "CountedLater", "Noisy", "AlwaysDropped", "DroppedPlanes",
}  # fmt: skip


def fresh(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def built(name: str) -> nn.Module:
    module = fresh(name).double()
    for hidden in getattr(module, "hidden", []):
        hidden.double()
    return module


def settled(module: nn.Module) -> Channels:
    return survey(module, EXAMPLE)


def halved(name: str) -> tuple[nn.Module, Channels, Bools, nn.Module]:
    """A model, its channels, half of them, and what is left without those."""
    module = built(name)
    channels = settled(module)
    removed = halves(channels)
    return module, channels, removed, cut(module, channels, removed)[0]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_tried_has_the_shapes_and_numbers_of_the_cut(name: str) -> None:
    module, channels, removed, smaller = halved(name)
    outline = Forecast(channels, removed).outline(module)
    first, second = (dict(named_tensors(m)) for m in (smaller, outline))
    assert {n: (t.shape, t.dtype, type(t)) for n, t in first.items()} == {
        n: (t.shape, t.dtype, type(t)) for n, t in second.items()
    }
    assert all(tensor.is_meta for tensor in second.values())
    numbers = [
        [(n, v) for part in m.modules() for n, v in vars(part).items() if type(v) is int] for m in (smaller, outline)
    ]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("name", MODELS)
def test_halved_it_equals_the_masked_model(name: str) -> None:
    module, channels, removed, smaller = halved(name)
    test = random_example(EXAMPLE, 0)
    shapes = [[t.shape for t in output_tensors(m(*test.args))] for m in (module, smaller)]
    assert shapes[0] == shapes[1]
    assert compare(masked(module, channels, removed), smaller, [test], torch.float64).max_rel_error <= 1e-12


@pytest.mark.parametrize("name", [n for n in MODELS if n not in WHOLE])
def test_the_stem_can_be_pruned(name: str) -> None:
    channels = settled(built(name))
    group = next(g for g in channels.groups if "stem.weight[0]" in channels.member_names(g))
    assert group.frozen == ""


@pytest.mark.parametrize(
    ("name", "state"),
    [("Recurrent", "lstm.weight_hh_l0[1]"), ("Gated", "gru.weight_hh_l0[1]"), ("BothWays", "gru.weight_hh_l1[1]"),
     ("Projected", "lstm.weight_hr_l0[0]"), ("Projected", "lstm.weight_hr_l0[1]"), ("ToldState", "gru.weight_hh_l1[1]"),
     ("Cells", "first.weight_hh[1]"), ("Cells", "second.weight_hh[1]"), ("Cells", "third.weight_hh[1]")],
)  # fmt: skip
def test_the_states_of_recurrent_layers_can_be_pruned(name: str, state: str) -> None:
    channels = settled(built(name))
    group = next(g for g in channels.groups if state in channels.member_names(g))
    assert group.frozen == ""


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_stays_whole_has_a_reason(name: str) -> None:
    channels = settled(built(name))
    groups = [g for g in channels.groups if "stem.weight[0]" in channels.member_names(g)]
    assert any(g.frozen for g in groups)
    assert all(g.frozen != "coupled to a frozen channel" for g in groups)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [("NumberInTwoViews", ("query.weight[0]", "value.weight[0]")), ("NumberOfSplit", ("conv.weight[0]",)),
     ("NumberOfHeads", ("slopes.weight[0]",)), ("Shuffled", ("stem.weight[0]",)),
     ("CutByNumber", ("conv.weight[0]",)), ("UnevenCut", ("conv.weight[0]", "rest.weight[1]")),
     ("SumNobodyReads", ("skip.weight[1]",)), ("GroupedStream", ("wide.weight[0]",)), ("Bags", ("bag.weight[1]",)),
     ("DoubleAttention", ("gather.weight[0]", "spread.weight[0]", "value.weight[0]")),
     ("NarrowDense", ("layers.0.weight[0]", "layers.1.weight[0]")),
     ("TwoSided", ("first.weight[0]", "second.weight[0]", "both.weight[0]")), ("Packed", ("lstm.weight_hh_l0[1]",)),
     ("NormedStack", ("first.parametrizations.weight.original1[0]", "up.parametrizations.weight.original1[1]")),
     ("CrossAttention", ("attention.q_proj_weight[0]", "keys.weight[0]", "values.weight[0]")),
     ("ImageOfAVector", ("fc.weight[0]",)), ("ImageByShape", ("fc.weight[0]",)), ("ImageByWidth", ("fc.weight[0]",)),
     ("ImageByUnflatten", ("fc.weight[0]",)),
     ("UnitLength", ("stem.weight[0]", "conv.weight[0]")), ("DotProducts", ("left.weight[0]", "right.weight[0]")),
     ("Distances", ("value.weight[0]",)), ("GraphAttention", ("value.weight[0]",)),
     ("SumOfConstants", ("stem.weight[0]",)), ("ConvolutionalState", ("cell.gates.weight[0]",)),
     ("Splines", ("inner.weight[0]",)), ("LinearAttention", ("query.weight[0]", "value.weight[0]")),
     ("Retention", ("scores.weight[0]",)), ("Bases", ("inner.weight[0]",)),
     ("PixelsAsChannels", ("inner.weight[0]",)), ("TimeAsChannel", ("stem.weight[0]",)),
     ("Experts", tuple(f"experts.{number}.0.weight[0]" for number in range(4)))],
)  # fmt: skip
def test_inner_channels_can_be_pruned(name: str, tensors: tuple[str, ...]) -> None:
    channels = settled(built(name))
    for tensor in tensors:
        group = next(g for g in channels.groups if tensor in channels.member_names(g))
        assert group.frozen == ""


@pytest.mark.parametrize(
    ("name", "free"),
    [("PickedTokens", True), ("WrittenTokens", True), ("PickedByBuffer", True), ("PickedByNumber", False),
     ("PickedInPart", False), ("PickedChannels", False)],
)  # fmt: skip
def test_channels_of_picked_places(name: str, free: bool) -> None:
    channels = settled(built(name))
    group = next(g for g in channels.groups if "value.weight[0]" in channels.member_names(g))
    assert (group.frozen == "") == free


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("name", MODELS)
def test_strip_is_exact(name: str, share: float) -> None:
    module = built(name)
    generator = torch.Generator().manual_seed(1)
    for name_, parameter in module.named_parameters():
        if parameter.ndim > 1 and not name_.endswith(("original1", "_v")):  # a direction of length zero has no norm
            gone = torch.rand(len(parameter), generator=generator) < share
            parameter.data[gone] = 0
    result = strip(module, EXAMPLE)
    tests = [random_example(EXAMPLE, 0), random_example(EXAMPLE, 1, batch=3)]
    assert compare(module, result.module, tests, torch.float64).max_rel_error <= 1e-12


@pytest.mark.parametrize("name", ["ImageOfAVector", "ImageByShape", "ImageByWidth", "ImageByUnflatten"])
def test_dead_channels_of_an_image_that_was_a_vector(name: str) -> None:
    module = built(name)
    for parameter in module.fc.parameters():
        parameter.data.unflatten(0, (12, 4))[[0, 3, 5]] = 0
    result = strip(module, EXAMPLE)
    assert compare(module, result.module, [random_example(EXAMPLE, 0)], torch.float64).max_rel_error <= 1e-12
    assert result.module.up.in_channels == 9


def test_dead_channels_where_an_attribute_holds_the_width() -> None:
    module = built("NumberOfSplit")
    for parameter in module.conv.parameters():
        parameter.data[[0, 1, 2, 8, 9, 10, 11]] = 0
    result = strip(module, EXAMPLE)
    assert compare(module, result.module, [random_example(EXAMPLE, 0)], torch.float64).max_rel_error <= 1e-12
    assert result.module.width == len(result.module.conv.weight) // 2 == 5


@pytest.mark.parametrize(("name", "layer", "left"), [("GraphAttention", "value", 14), ("SumOfConstants", "stem", 16)])
def test_a_dead_channel_goes_where_zero_is_summed_and_stays_elsewhere(name: str, layer: str, left: int) -> None:
    module = built(name)
    for parameter in module.get_submodule(layer).parameters():
        parameter.data[:5] = 0
        parameter.data[12:17] = 0  # of the second head
    result = strip(module, EXAMPLE)
    assert compare(module, result.module, [random_example(EXAMPLE, 0)], torch.float64).max_rel_error <= 1e-12
    assert len(result.module.get_submodule(layer).weight) == left


def test_two_channels_stay_where_one_alone_would_break_it() -> None:
    module = built("LinearAttention")
    channels = settled(module)
    wish = ~channels.frozen
    found = settle(module, EXAMPLE, channels, repair(channels, wish))
    removed = repair(found, wish)
    smaller, _ = cut(module, found, removed)
    assert (smaller.query.out_features, smaller.value.out_features) == (8, 8)  # of four heads
    test = random_example(EXAMPLE, 0)
    assert compare(masked(module, found, removed), smaller, [test], torch.float64).max_rel_error <= 1e-12


def test_what_is_summed_up_is_left_out_of_the_masked_model() -> None:
    module = built("DotProducts")
    channels = settled(module)
    removed = halves(channels)
    left = next(slot.channels for slot in channels.slots if slot.name == "left.weight")
    reference, test = masked(module, channels, removed), random_example(EXAMPLE, 0)
    for layer in (module.left, module.right):
        for parameter in layer.parameters():
            parameter.data[torch.from_numpy(removed[left])] = 0
    for slot in channels.slots:  # of the stem, which linear layers read
        if (slot.name, slot.dim) in (("left.weight", 1), ("right.weight", 1)):
            module.get_parameter(slot.name).data[:, torch.from_numpy(removed[slot.channels])] = 0
    expected = module(*test.args)
    # torch adds 1e-6 to every difference of `pairwise_distance`
    torch.testing.assert_close(reference(*test.args), expected, rtol=1e-6, atol=1e-6)


def test_weight_norm_leaves_the_other_weights_as_they_are() -> None:
    """The masked model is made up for by the same function as the cut one: this looks at the weights themselves."""
    module = built("NormedStack")
    channels = settled(module)
    smaller, journal = cut(module, channels, halves(channels))
    for name in ("first", "up"):
        weight, direction = module.get_submodule(name).weight, f"{name}.parametrizations.weight.original1"
        for dim in (0, 1):
            assert len(journal.kept[direction, dim]) < weight.shape[dim]
            weight = weight.index_select(dim, torch.tensor(journal.kept[direction, dim]))
        torch.testing.assert_close(smaller.get_submodule(name).weight, weight, rtol=1e-12, atol=0)


def test_a_filter_of_weight_norm_that_has_nothing_left_is_zero() -> None:
    module = built("NormedStack")
    channels = settled(module)
    removed = halves(channels)
    gone = next(s.channels for s in channels.slots if (s.name, s.dim) == ("first.parametrizations.weight.original1", 1))
    with torch.no_grad():
        module.first.parametrizations.weight.original1[0, torch.from_numpy(~removed[gone])] = 0
    smaller, _ = cut(module, channels, removed)
    assert not smaller.first.weight[0].any()
    test = random_example(EXAMPLE, 0)
    assert compare(masked(module, channels, removed), smaller, [test], torch.float64).max_rel_error <= 1e-12


def test_a_computed_weight_that_is_zero() -> None:
    module = built("Modulated")
    module.get_parameter("weight").data.zero_()
    pair = random_example(EXAMPLE, 0, batch=2)
    result = strip(module, pair)
    assert compare(module, result.module, [pair], torch.float64).max_rel_error <= 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_random_cuts_run(name: str) -> None:
    module = built(name)
    channels = settled(module)
    for seed in range(3):
        removed = repair(channels, np.random.default_rng(seed).random(channels.count) < 0.4)
        channels = settle(module, EXAMPLE, channels, removed)
        removed = repair(channels, removed)
        smaller, _ = cut(module, channels, removed)
        test = [random_example(EXAMPLE, seed)]
        assert compare(masked(module, channels, removed), smaller, test, torch.float64).max_rel_error <= 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_true_is_right_when_it_is_inspected(name: str) -> None:
    """Also where channels were not settled before, so that some cuts break the model."""
    module = built(name)
    channels = trace(module, EXAMPLE, as_written(module))
    for seed, share in enumerate((0.1, 0.3, 0.5, 0.9)):
        removed = repair(channels, np.random.default_rng(seed).random(channels.count) < share)
        forecast = Forecast(channels, removed)
        if forecast.is_plain and forecast.comes_true(module, EXAMPLE):
            assert inspected(module, EXAMPLE, forecast) is None


def pruned(module: nn.Module, path: Path) -> PruneFacts | None:
    """None where too little of the model can go."""
    fields = {"version": 1, "method": {"name": "random"}, "budget": {"flops": 0.6}, "strip": {"expand": "always"}}
    try:
        return prunecli.prune(validate(fields), module, path, prunecli.Opening.like(torch.zeros(1, 3, 8, 8)))
    except InputError as error:
        if not re.search("no prunable channel|cannot be met", str(error)):
            raise
        return None


@pytest.mark.parametrize("name", [n for n in MODELS if n != "FakeQuantised"])  # which runs in float64 only
def test_from_a_module_to_a_file_and_back(name: str, tmp_path: Path) -> None:
    module = fresh(name)
    facts = pruned(module, tmp_path / "o.safetensors")
    if facts is None:
        assert not list(tmp_path.iterdir())
        return
    assert facts.budget.met <= 0.6
    assert facts.verified.max_rel_error <= 1e-12
    smaller, test = prunecli.load(tmp_path / "o.safetensors", into=fresh(name)), torch.randn(1, 3, 8, 8)
    for before, after in zip(output_tensors(module(test)), output_tensors(smaller(test)), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
