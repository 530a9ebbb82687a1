"""Expand: fewer filters, the same function at every size, undone without a trace, and safe to read from a file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from randomise import randomise, zero_filters
from tampering import tampered
from torch import nn

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.checkpoint.journal import Expansion, Journal
from prunecli.errors import InputError, NothingRemoved
from prunecli.exporters.targets import TARGETS, write_and_run
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.model import Opening, open_model
from prunecli.recipe.load import validate
from prunecli.surgery.expand import Expanded, _kept, collapsed, expand
from prunecli.surgery.pace import kernel_width
from prunecli.surgery.strip import strip
from prunecli.surgery.verify import compare


def example(size: int = 32) -> Example:
    return Example((torch.zeros(1, 3, size, size, dtype=torch.float64),))


def trials(*sizes: int) -> list[Example]:
    return [random_example(example(size), size) for size in sizes]


def zeroed(name: str = "cifar_resnet20", share: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return zero_filters(randomise(build(parse(name))), share).double()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ["cifar_resnet20", "torchvision:resnext50_32x4d", "torchvision:squeezenet1_1"])
def test_the_same_function_with_fewer_filters(name: str) -> None:
    module = zeroed(name)
    stripped = strip(module, example(64)).module
    expanded, journal = expand(stripped, example(64), "always")
    assert journal.expansions
    assert count(expanded) < count(stripped)
    assert compare(module, expanded, trials(64, 80), torch.float64).max_rel_error < 1e-12


def test_collapsing_gives_the_model_back() -> None:
    module = zeroed()
    stripped = strip(module, example())
    expanded, journal = expand(stripped.module, example(), "always")
    wide, rest = collapsed(expanded, stripped.journal.then(journal))
    assert not rest.expansions
    assert {n: t.shape for n, t in wide.state_dict().items()} == {
        n: t.shape for n, t in stripped.module.state_dict().items()
    }
    assert not any(isinstance(part, Expanded) for part in wide.modules())
    assert compare(module, wide, trials(32, 48), torch.float64).max_rel_error < 1e-12
    assert wide.conv1.out_channels == wide.conv1.weight.shape[0]


def test_a_norm_without_affine_parameters() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False), nn.Flatten()).double().eval()
    net[1].running_mean.normal_()
    net[0].weight.data[2:5] = 0
    expanded, journal = expand(net, example(8), "always")
    wide, _ = collapsed(expanded, journal)
    for smaller in (expanded, wide):
        assert compare(net, smaller, trials(8), torch.float64).max_rel_error < 1e-12
    assert expanded[0].weight.shape[0] == 5


@pytest.mark.parametrize("norm", [False, True])
def test_a_depthwise_convolution_keeps_its_inputs(norm: bool) -> None:
    """Two filters for each input, of which one is dead: half of the filters go, and no group."""
    layers = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), *([nn.BatchNorm2d(8)] if norm else [])]
    module = randomise(nn.Sequential(*layers)).double().eval()
    module[1].weight.data[::2], module[1].bias.data[::2] = 0, 0
    example = trials(9)[0].to(dtype=torch.float64)
    smaller, journal = expand(module, example, "always")
    conv = smaller[1]
    assert (conv.in_channels, conv.out_channels, conv.groups, len(conv.weight)) == (4, 4, 4, 4)
    assert compare(module, smaller, [example], torch.float64).max_rel_error < 1e-12
    back, _ = collapsed(smaller, journal)
    assert (back[1].in_channels, back[1].out_channels, back[1].groups) == (4, 8, 4)
    assert compare(module, back, [example], torch.float64).max_rel_error < 1e-12


def test_auto_leaves_alone_what_does_not_pay() -> None:
    module = zeroed()
    _, journal = expand(strip(module, example()).module, example(), "auto")
    assert not journal.expansions  # tiny layers: three more kernels cost more than they save


def test_groups_keep_equal_counts_that_kernels_like() -> None:
    constant = torch.zeros(32, dtype=torch.float64)
    constant[[0, 1, 2, 17]] = torch.nan
    assert _kept(constant, 2) == (0, 1, 2, 3, 16, 17, 18, 19)
    assert [kernel_width(n) for n in (1, 2, 3, 4, 5, 8, 9, 17)] == [1, 2, 4, 4, 8, 8, 16, 24]


def written(tmp_path: Path, **strip_fields: object) -> tuple[Path, nn.Module]:
    module = zeroed().float()
    source, output = tmp_path / "zeros.pt", tmp_path / "small.safetensors"
    torch.save(module.state_dict(), source)
    fields = {"version": 1, "arch": "cifar_resnet20", "method": {"name": "none"}, "strip": strip_fields}
    facts = prunecli.prune(validate(fields), str(source), output)
    assert facts.verified.max_rel_error < 1e-12
    assert facts.verified.dtype == "float64"
    return output, module


@pytest.fixture(scope="module")
def expanded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read by tests, which leave it as it is."""
    return written(tmp_path_factory.mktemp("expanded"), expand="always")[0]


@pytest.mark.parametrize("fold", [False, True])
def test_round_trip_through_a_file(fold: bool, tmp_path: Path) -> None:
    output, module = written(tmp_path, expand="always", fold_batchnorm=fold)
    reloaded = open_model(str(output)).module
    assert any(isinstance(part, Expanded) for part in reloaded.modules())
    assert compare(module, reloaded, trials(32, 40), torch.float32).max_rel_error < 1e-5


def test_an_expanded_file_can_be_pruned_again(expanded_file: Path, tmp_path: Path) -> None:
    before = prunecli.analyze(str(expanded_file)).flops
    fields = {"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}}
    facts = prunecli.prune(validate(fields), str(expanded_file), tmp_path / "smaller.safetensors")
    assert facts.after.flops <= 0.5 * before
    assert facts.removed_channels == sum(cut.before - cut.after for cut in facts.cuts) > 0
    assert open_model(str(tmp_path / "smaller.safetensors")).module is not None


def test_stripping_an_expanded_file_again_finds_nothing(expanded_file: Path, tmp_path: Path) -> None:
    fields = {"version": 1, "method": {"name": "none"}, "strip": {"expand": "always"}}
    with pytest.raises(NothingRemoved):
        prunecli.prune(validate(fields), str(expanded_file), tmp_path / "again.safetensors")


def test_off_is_off_even_as_yaml_reads_it(tmp_path: Path) -> None:
    output, _ = written(tmp_path, expand=False)
    assert not open_model(str(output)).journal.expansions


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ts"])
def test_runtimes_carry_it(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module = zeroed()
    expanded, _ = expand(strip(module, example()).module, example(), "always")
    single = expanded.float().eval()
    inputs = [t.to(dtype=torch.float32) for t in (example(), *trials(32))]
    assert write_and_run(TARGETS[suffix], single, inputs[0], [], tmp_path / f"m{suffix}").max_abs_error < 1e-4


LIES = {
    "a width beyond all memory": lambda j: j["expansions"][0].update(width=2**40),
    "no width": lambda j: j["expansions"][0].update(width="16"),
    "indices beyond the width": lambda j: j["expansions"][0].update(kept="0-99"),
    "indices that fall": lambda j: j["expansions"][0].update(kept="3,1"),
    "layers that are not there": lambda j: j["expansions"][0].update({"in": ["nowhere"]}),
    "layers that are none": lambda j: j["expansions"][0].update({"in": ["layer1"]}),
    "the whole model": lambda j: j["expansions"][0].update({"in": [""]}),
    "no layers": lambda j: j["expansions"][0].update({"in": []}),
    "a fold of a convolution": lambda j: j.update(folded=["conv1"]),
    "a fold of nothing": lambda j: j.update(folded=[""]),
    "a number for a name": lambda j: j.update(folded=[3]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_journals_are_refused(lie: str, expanded_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_model(str(tampered(expanded_file, LIES[lie], tmp_path)), Opening())


def test_journals_with_expansions_survive_json() -> None:
    journal = Journal({("a.weight", 0): (0, 2)}, {}, {"b": Expansion(("a", "b"), (0, 1), 4)}, ("c",))
    assert Journal.from_json(json.loads(json.dumps(journal.to_json()))) == journal
    with pytest.raises(ValueError, match="after an expansion"):
        journal.then(Journal({("a.weight", 0): (0,)}))


def test_training_leaves_the_constants_alone() -> None:
    expanded, _ = expand(strip(zeroed(), example()).module, example(), "always")
    trained = copy.deepcopy(expanded).train()
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    trained(torch.randn(4, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    constants = {n: t for n, t in expanded.state_dict().items() if n.endswith("expand_constant")}
    assert constants
    assert all(torch.equal(trained.state_dict()[name], tensor) for name, tensor in constants.items())
