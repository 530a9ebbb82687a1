"""Borders: what constants add under padding, at every size, wherever the layer goes afterwards."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from randomise import randomise, zero_filters
from tampering import tampered
from torch import Tensor, nn

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.checkpoint.journal import Journal
from prunecli.errors import InputError, NothingRemoved
from prunecli.exporters.targets import TARGETS, write_and_run
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.methods.magnitude import Magnitude
from prunecli.model import open_model
from prunecli.pipeline.operate import prunable
from prunecli.recipe.load import validate
from prunecli.surgery.border import Bordered, border, bordered
from prunecli.surgery.expand import expand
from prunecli.surgery.fold import fold_batchnorm
from prunecli.surgery.gates import candidates
from prunecli.surgery.strip import strip
from prunecli.surgery.verify import compare

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def example(*size: int, channels: int = 3) -> Example:
    return Example((torch.zeros(1, channels, *size, dtype=torch.float64),))


def trials(*sizes: int) -> list[Example]:
    return [random_example(example(size, size + 1), size) for size in sizes]


def padded() -> nn.Sequential:
    """A convolution, some of whose filters are dead, and one that reads their constants under padding."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 21, 1), nn.Conv2d(21, 6, 3, padding=1)
    first.weight.data[:5] = 0
    return nn.Sequential(first, nn.Sigmoid(), second).double().eval()


def zeroed(name: str = "cifar_resnet20") -> nn.Module:
    torch.manual_seed(0)
    return zero_filters(randomise(build(parse(name))), 0.5).double()


LAYOUTS = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 6), st.integers(1, 3), st.integers(1, 20))


@settings(max_examples=200)
@given(dims=st.lists(LAYOUTS, min_size=1, max_size=3))
def test_the_border_is_what_a_channel_of_ones_adds(dims: list[tuple[int, int, int, int, int]]) -> None:
    """Kernel, stride, padding, dilation and extent of one to three dims."""
    kernel, stride, padding, dilation, size = zip(*dims, strict=True)
    if any(n + 2 * p < d * (k - 1) + 1 for k, _, p, d, n in dims) or math.prod(size) > 4000:
        return  # a kernel larger than the padded input is an error of torch
    layer = KINDS[len(dims) - 1](2, 3, kernel, stride, padding, dilation).double()
    border(layer, [""])
    layer.bias_taps.data.normal_(generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    plain = KINDS[len(dims) - 1](1, 3, kernel, stride, padding, dilation, bias=False).double()
    plain.weight = layer.bias_taps
    torch.testing.assert_close(layer.border(size), plain(ones)[0], rtol=0, atol=1e-12)


def test_the_border_costs_next_to_nothing_and_is_right_at_any_size() -> None:
    module = padded()
    with_channel, with_border = (strip(module, example(9, 9), borders=wanted).module for wanted in (False, True))
    assert [m[0].out_channels for m in (with_channel, with_border)] == [17, 16]
    assert bordered(with_border) == ["2"]
    for smaller in (with_channel, with_border):
        assert compare(module, smaller, trials(1, 2, 3, 9, 30), torch.float64).max_rel_error < 1e-12
    closed = torch.tensordot(module[2].weight[:, :5], torch.sigmoid(module[0].bias[:5]), ([1], [0]))
    torch.testing.assert_close(with_border[2].bias_taps[:, 0], closed)


@pytest.mark.parametrize(
    "conv",
    [
        {"stride": 2}, {"dilation": 2}, {"bias": False}, {"padding": (0, 2)}, {"padding": "same"},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_padding(conv: dict[str, object]) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 21, 1), nn.Conv2d(21, 6, 3, **{"padding": 1, **conv})
    first.weight.data[:5] = 0
    module = nn.Sequential(first, second).double().eval()
    smaller = strip(module, example(9, 9), borders=True).module
    assert compare(module, smaller, trials(5, 9, 12), torch.float64).max_rel_error < 1e-12
    plain = conv.get("padding") != "same" and "padding_mode" not in conv
    assert bordered(smaller) == (["1"] if plain else [])


@pytest.mark.parametrize("name", ["cifar_resnet20", "torchvision:googlenet", "torchvision:squeezenet1_1"])
def test_expanded_and_folded(name: str) -> None:
    module, first = zeroed(name), example(64, 64)
    stripped = strip(module, first, borders=True)
    expanded, _ = expand(stripped.module, first, "always")
    folded, journal = fold_batchnorm(expanded, first)
    for smaller in (stripped.module, expanded, folded):
        assert bordered(smaller)
        assert compare(module, smaller, trials(64, 75), torch.float64).max_rel_error < 1e-12
    if name == "cifar_resnet20":
        assert {path.replace("conv", "bn") for path in bordered(folded)}.intersection(journal.folded)


def test_what_was_seen_last_is_used_for_nothing_else() -> None:
    layer = border(nn.Conv2d(2, 3, 3, padding=1), [""]).eval()
    assert isinstance(layer, Bordered)

    def expected(x: Tensor) -> Tensor:
        plain = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
        return plain + nn.functional.conv2d(torch.ones_like(x[:, :1]), layer.bias_taps, padding=1)

    with torch.no_grad():
        for size, anew in ((5, True), (7, False), (7, True), (5, True)):
            if anew:
                layer.bias_taps.data.normal_()  # torch counts no version of what is written by way of `data`
            for _ in range(2):
                x = torch.randn(2, 2, size, size)
                torch.testing.assert_close(layer(x), expected(x))
        layer.double()
        x = x.double()
        torch.testing.assert_close(layer(x), expected(x), rtol=0, atol=1e-14)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer._last))):
            assert getattr(twin, "_last", twin)._seen is None


def test_a_border_is_trained_and_is_no_weight_that_is_pruned() -> None:
    smaller = strip(zeroed(), example(32, 32), borders=True).module.train()
    smaller(torch.randn(4, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
    taps = [part.bias_taps for part in smaller.modules() if isinstance(part, Bordered)]
    assert all(bool((tap.grad != 0).any()) for tap in taps)
    method = Magnitude(name="magnitude", structure="weight")
    weights = prunable(smaller.eval(), example(32, 32), method)
    assert weights
    assert not any(name.endswith("bias_taps") for name in weights)


def test_gates_leave_borders_alone() -> None:
    """A gated layer, and one that skips closed channels, computes without its own forward."""
    smaller = strip(zeroed(), example(32, 32), borders=True).module
    gates = [found.gate for found in candidates(smaller, example(32, 32))]
    assert gates
    assert not {name for gate in gates for name in (gate.conv, *gate.readers)}.intersection(bordered(smaller))


def written(tmp_path: Path, **fields: object) -> tuple[Path, nn.Module]:
    module = zeroed().float()
    source, output = tmp_path / "zeros.pt", tmp_path / "small.safetensors"
    torch.save(module.state_dict(), source)
    recipe = {"version": 1, "arch": "cifar_resnet20", "method": {"name": "none"}}
    facts = prunecli.prune(validate({**recipe, "strip": {"expand": "always", **fields}}), str(source), output)
    assert facts.verified.max_rel_error < 1e-12
    return output, module


@pytest.fixture(scope="module")
def bordered_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read by tests, which leave it as it is."""
    return written(tmp_path_factory.mktemp("bordered"))[0]


@pytest.mark.parametrize("fold", [False, True])
def test_round_trip_through_a_file(fold: bool, tmp_path: Path) -> None:
    output, module = written(tmp_path, fold_batchnorm=fold)
    reloaded = open_model(str(output))
    assert list(reloaded.journal.bordered) == sorted(bordered(reloaded.module)) != []
    assert compare(module, reloaded.module, trials(32, 40), torch.float32).max_rel_error < 1e-5


def test_a_bordered_file_can_be_pruned_again(bordered_file: Path, tmp_path: Path) -> None:
    strips = {"version": 1, "method": {"name": "none"}, "strip": {"expand": "always"}}
    with pytest.raises(NothingRemoved):
        prunecli.prune(validate(strips), str(bordered_file), tmp_path / "again.safetensors")
    for structure, budget in {"channel": {"flops": 0.5}, "weight": {"sparsity": 0.9}}.items():
        method, path = {"name": "magnitude", "structure": structure}, tmp_path / f"{structure}.safetensors"
        facts = prunecli.prune(validate({"version": 1, "method": method, "budget": budget}), str(bordered_file), path)
        assert facts.budget is not None
        assert facts.budget.met == pytest.approx(*budget.values(), rel=0.02)
        assert open_model(str(path)).journal.bordered


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ts"])
def test_runtimes_carry_it(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    smaller = strip(zeroed(), example(32, 32), borders=True).module.float().eval()
    inputs = [random_example(example(32, 32), 0).to(dtype=torch.float32)]
    assert write_and_run(TARGETS[suffix], smaller, inputs[0], [], tmp_path / f"m{suffix}").max_abs_error < 1e-4
    if suffix == ".ts":  # which takes any size, as it does without borders
        other = torch.randn(2, 3, 39, 44)
        with torch.no_grad():
            torch.testing.assert_close(
                torch.jit.load(str(tmp_path / "m.ts"))(other), smaller(other), atol=1e-5, rtol=1e-4
            )


LIES = {
    "a layer that is not there": ["nowhere"],
    "a batch norm": ["bn1"],
    "the whole model": [""],
    "a number": [3],
    "a number in place of a list": 3,
    "a name in place of a list": "conv1",
    "nothing in place of a list": None,
    "a list of lists": [["conv1"]],
    "a layer without taps in the file": ["layer3.2.conv1", "conv1"],
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_journals_are_refused(lie: str, bordered_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_model(str(tampered(bordered_file, lambda j: j.update(bordered=LIES[lie]), tmp_path)))


def test_taps_without_a_journal_that_names_them_are_refused(bordered_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no place"):
        open_model(str(tampered(bordered_file, lambda j: j.update(bordered=[]), tmp_path)))


def test_rows_of_taps_are_those_of_the_weight() -> None:
    first = Journal({("a.weight", 0): (0, 2, 5)})
    second = Journal({("a.weight", 0): (1, 2)}, bordered=("a",))
    both = first.then(second)
    assert both.kept == {("a.weight", 0): (2, 5), ("a.bias_taps", 0): (2, 5)}
    assert Journal.from_json(both.to_json()) == both
