"""Modules in memory: every verb takes them, leaves them as they are, and what it writes fills a fresh one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from randomise import randomise
from torch import Tensor, nn
from zoo.user_models import MODELS

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.errors import InputError, VerificationError
from prunecli.inputs import parse_inputs
from prunecli.model import open_model
from prunecli.pipeline.container import origin
from prunecli.recipe.load import validate

TAKES = prunecli.Opening.like(torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.int64))


class Conditioned(nn.Module):
    """A network that no file describes, and that takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.label = nn.Embedding(10, 16)
        self.body = nn.Conv2d(16, 24, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu() + self.label(label)[:, :, None, None]
        return self.head(self.body(x).relu().mean((2, 3)))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(Conditioned())


def recipe(**fields: object) -> object:
    return validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}} | fields)


def outputs(module: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return module(torch.randn(2, 3, 20, 20), torch.tensor([3, 7]))


def test_it_stays_as_it_is(tmp_path: Path) -> None:
    module = network().train()
    module.body.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    prunecli.prune(recipe(), module, tmp_path / "o.safetensors", TAKES)
    prunecli.analyze(module, TAKES)
    prunecli.export(module, tmp_path / "o.pth", TAKES)
    assert module.training
    assert not module.body.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("wrapped", [lambda m: m, torch.compile, nn.DataParallel])
def test_what_is_written_fills_a_fresh_one(wrapped: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    path = str(tmp_path / "o.safetensors")
    facts = prunecli.prune(recipe(), wrapped(network()), path, TAKES)
    assert facts.model == "Conditioned"
    assert 0.45 < facts.after.flops / facts.before.flops <= 0.5
    filled = prunecli.load(path, into=network(seed=1))
    assert not filled.training
    assert sum(p.numel() for p in filled.parameters()) == facts.after.params
    again = prunecli.prune(recipe(budget={"params": 0.9}), filled, tmp_path / "o2.safetensors", TAKES)
    twice = prunecli.load(tmp_path / "o2.safetensors", into=prunecli.load(path, into=network(seed=2)))
    assert sum(p.numel() for p in twice.parameters()) == again.after.params < facts.after.params


@pytest.mark.parametrize("seed", range(3))
def test_one_number_for_several_layers(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    module, takes = randomise(MODELS["NumberInTwoViews"]()), prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    settings = recipe(method={"name": "magnitude", "exclude": ["stem"]}, budget={"flops": 0.7}, strip={"round_to": 1})
    prunecli.prune(settings, module, tmp_path / "o.safetensors", takes)
    filled = prunecli.load(tmp_path / "o.safetensors", into=MODELS["NumberInTwoViews"]())
    assert filled.width == len(filled.query.weight) == len(filled.value.weight) < 8


def test_nothing_to_cut_fills_it_with_the_same_numbers(tmp_path: Path) -> None:
    module = network().eval()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    torch.testing.assert_close(outputs(prunecli.load(tmp_path / "m.pt", into=network(1))), outputs(module))
    torch.save({"model": module}, tmp_path / "whole.pt")
    filled = prunecli.load(tmp_path / "whole.pt", into=network(2), trust=True)
    torch.testing.assert_close(outputs(filled), outputs(module))


@pytest.mark.parametrize("from_file", [False, True])
def test_weights_may_lie_in_memory_in_any_order(from_file: bool, tmp_path: Path) -> None:
    spec = "torchvision:mobilenet_v2"
    module = build(parse(spec)).to(memory_format=torch.channels_last)
    torch.save(module.state_dict(), tmp_path / "last.pt")
    source, opening = str(tmp_path / "last.pt") if from_file else module, prunecli.Opening(spec)
    opened = open_model(source, opening).module
    assert all(t.stride() == torch.empty(t.shape).stride() for t in opened.state_dict().values())
    assert module.features[0][0].weight.stride(1) == 1  # the module itself stays as it is
    torch.testing.assert_close(opened.state_dict(), module.state_dict(), rtol=0, atol=0)
    prunecli.prune(recipe(), source, tmp_path / "o.safetensors", replace(opening, inputs=parse_inputs("1x3x64x64")))


def test_another_class_is_refused(tmp_path: Path) -> None:
    prunecli.prune(recipe(), network(), tmp_path / "o.safetensors", TAKES)
    with pytest.raises(InputError, match="as Linear does not fit"):
        prunecli.load(tmp_path / "o.safetensors", into=nn.Linear(3, 3))
    with pytest.raises(InputError, match="without a name"):
        prunecli.load(tmp_path / "o.safetensors")


def test_its_input_must_be_said() -> None:
    with pytest.raises(InputError, match="what input does Conditioned take") as caught:
        prunecli.analyze(network())
    assert "Opening.like" in caught.value.hint


def test_its_architecture_may_be_named(tmp_path: Path) -> None:
    module = randomise(build(parse("cifar_resnet20")))
    prunecli.prune(recipe(), module, tmp_path / "o.safetensors", prunecli.Opening(arch="cifar_resnet20"))
    assert isinstance(prunecli.load(tmp_path / "o.safetensors"), type(module))


def test_training_takes_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    takes = prunecli.Opening.like(torch.zeros(1, 1, 8, 8))
    settings = recipe(method={"name": "none"}, budget=None, data="digits", train={"epochs": 3, "lr": 0.05})
    facts = prunecli.finetune(settings, module, tmp_path / "o.safetensors", takes, teacher=module)
    assert facts.after.accuracy > 0.6
    assert facts.before.accuracy == prunecli.analyze(module, takes, data="digits").accuracy


def test_a_run_belongs_to_the_weights_it_starts_from() -> None:
    first, same, other = (origin(open_model(network(seed), TAKES)) for seed in (0, 0, 1))
    assert first == same != other


class Single(nn.Module):
    """Its Python fixes the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv1d(4, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().view(-1, x.shape[2]).T)[None]


def test_a_network_for_one_at_a_time(tmp_path: Path) -> None:
    takes = prunecli.Opening.like(torch.zeros(1, 4, 8))
    facts = prunecli.prune(recipe(), Single(), tmp_path / "o.safetensors", takes)
    assert facts.verified
    assert facts.verified.inputs == 1
    assert prunecli.export(Single(), tmp_path / "o.pt2", takes).checked


def test_a_layer_is_named_once_with_its_outputs(tmp_path: Path) -> None:
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    plain = recipe(strip={"round_to": 1})
    facts = prunecli.prune(plain, MODELS["NormedStack"](), tmp_path / "o.safetensors", takes)
    layers = [cut.group for cut in facts.cuts]
    assert len(layers) == len(set(layers))
    assert next(cut.before for cut in facts.cuts if cut.group == "up") == 12


def test_weight_norm_is_left_out_of_sparsity() -> None:
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    sparse = recipe(method={"name": "magnitude", "structure": "weight"}, budget={"sparsity": 0.8})
    facts = prunecli.prune(sparse, MODELS["NormedStack"](), None, takes)
    assert facts.notes == ["3 layers with weight norm are left out: their weights are computed"]
    assert facts.budget
    assert facts.budget.met == pytest.approx(0.8, abs=0.005)
    stack = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    with pytest.raises(InputError, match="no prunable weight"):
        prunecli.prune(sparse, stack, None, prunecli.Opening.like(torch.zeros(1, 4)))


def test_complex_weights_are_left_out_of_sparsity_and_keep_both_parts(tmp_path: Path) -> None:
    sparse = recipe(method={"name": "magnitude", "structure": "weight"}, budget={"sparsity": 0.8})
    whole = MODELS["SpectralConvolution"]()
    facts = prunecli.prune(sparse, whole, tmp_path / "f.safetensors", prunecli.Opening.like(torch.zeros(1, 3, 8, 8)))
    assert facts.notes == ["4.608k complex weights are left out: only channels of them go"]
    small = prunecli.load(tmp_path / "f.safetensors", into=MODELS["SpectralConvolution"]())
    assert set(small.modes.flatten().tolist()) <= set(whole.modes.flatten().tolist())


@pytest.mark.parametrize(
    "fields",
    [
        {"method": {"name": "str"}, "budget": {"sparsity": 0.8}, "train": {"epochs": 1}},
        {"method": {"name": "gumbel", "structure": "channel"}, "budget": {"flops": 0.7}, "train": {"epochs": 1}},
        {"budget": {"flops": 0.7}, "recover": {}},
    ],
)
def test_images_are_real_where_the_first_weight_is_complex(fields: dict[str, object], tmp_path: Path) -> None:
    trained = recipe(data="fake:3x8x8", **fields)
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    whole = MODELS["SpectralConvolution"]()
    assert next(whole.parameters()).is_complex()
    facts = prunecli.prune(trained, whole, tmp_path / "f.safetensors", takes)
    assert facts.after.accuracy is not None
    assert facts.verified.max_rel_error < 1e-12


@pytest.mark.parametrize(("method", "budget"), [("none", None), ("magnitude", {"flops": 0.6})])
def test_channels_go_where_all_weights_have_weight_norm(method: str, budget: dict[str, float] | None) -> None:
    norm = nn.utils.parametrizations.weight_norm
    stack = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.Conv2d(8, 4, 3)))
    stack[0].parametrizations.weight.original0.data[::2] = 0
    stack[0].bias.data[::2] = 0
    fields = {"version": 1, "method": {"name": method}, **({"budget": budget} if budget else {})}
    facts = prunecli.prune(validate(fields), stack, None, prunecli.Opening.like(torch.zeros(1, 3, 8, 8)))
    assert facts.after.params < 0.6 * facts.before.params


def test_scales_of_channels_are_no_weights() -> None:
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    scaled = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1))
    scaled.register_parameter("gamma", nn.Parameter(torch.zeros(8, 1, 1)))
    sparse = recipe(method={"name": "magnitude", "structure": "weight"}, budget={"sparsity": 0.5})
    facts = prunecli.prune(sparse, scaled, None, takes)
    assert facts.before.nonzero - facts.after.nonzero >= 16  # of 24 + 8 weights; those of gamma were zero before


class Lengths(nn.Module):
    """Sequences with their lengths, which must not be 0."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.head = nn.Embedding(9, 16), nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        rows = nn.utils.rnn.pack_padded_sequence(self.words(words), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.lstm(rows)[1][0][0])


def test_integers_are_as_large_as_in_the_example(tmp_path: Path) -> None:
    takes = prunecli.Opening.like(torch.tensor([[1, 2, 8], [4, 0, 0]]), torch.tensor([3, 1]))
    assert prunecli.prune(recipe(budget={"params": 0.6}), Lengths(), tmp_path / "o.safetensors", takes).verified


@pytest.mark.parametrize("example", [{"x": torch.zeros(1)}, torch.zeros(1, dtype=torch.complex64), 3])
def test_what_is_no_tensor_of_numbers_is_refused(example: object) -> None:
    with pytest.raises(InputError, match="tensors of floats or integers, not"):
        prunecli.Opening.like(example)


class Timed(nn.Module):
    """It computes in float32 whatever the dtype of its parameters, as embeddings of time do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        waves = time[:, None].float() * torch.arange(8.0)[None].neg().exp()
        return x + self.second(self.first(waves.cos()).relu())


def test_what_computes_in_float32_is_verified_so(tmp_path: Path) -> None:
    takes = prunecli.Opening.like(torch.zeros(1, 4), torch.tensor([5]))
    facts = prunecli.prune(recipe(), Timed(), tmp_path / "o.safetensors", takes)
    assert facts.verified
    assert facts.verified.dtype == "float32"


def test_buffers_that_no_file_holds_keep_their_dtype(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MODELS["FollowingBuffer"]()
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    facts = prunecli.prune(recipe(data="fake:3x8x8"), module, tmp_path / "o.safetensors", takes)
    assert facts.after.accuracy is not None
    smaller = prunecli.load(tmp_path / "o.safetensors", into=copy.deepcopy(module))
    assert {tensor.dtype for tensor in (*smaller.parameters(), *smaller.buffers())} == {torch.float32}


def test_buffers_that_come_out_otherwise_are_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from zoo.user_models import FollowingBuffer\n")
    asked = recipe(input="1x3x8x8")
    with pytest.raises(VerificationError) as caught:
        prunecli.prune(asked, f"{tmp_path / 'net.py'}:FollowingBuffer", tmp_path / "o.safetensors")
    assert caught.value.hint.startswith("shift: no file holds these buffers")
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("RegionsOfInterest", "gives 2 answers for 256 images"), ("Packed", "does not run on 256 images")],
)
def test_a_batch_that_a_model_does_not_take_is_told(name: str, problem: str, tmp_path: Path) -> None:
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match=problem):
        prunecli.prune(recipe(data="fake:3x8x8"), MODELS[name](), tmp_path / "o.safetensors", takes)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": {"name": "none"}, "budget": None, "strip": {"expand": "always", "fold_batchnorm": True}},
        {"budget": {"flops": 0.7}, "strip": {"fold_batchnorm": True}},
        {"budget": {"flops": 0.7}, "recover": {}, "data": "fake:3x8x8"},
    ],
)
def test_layers_that_share_a_weight_share_it_afterwards(fields: dict[str, object], tmp_path: Path) -> None:
    """What would change the weight of one of them, or its width, leaves both as they are."""
    torch.manual_seed(0)
    whole = randomise(MODELS["SharedFilters"]())
    with torch.no_grad():
        whole.first.weight[3:9] = 0
        for part in (whole.first, whole.second, *whole.norms):
            part.bias[3:9] = 0
        for norm in whole.norms:
            norm.running_mean[3:9] = 0
        whole.stem.weight[12:] = 0
        whole.stem.bias[12:] = 0
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    facts = prunecli.prune(recipe(**fields), whole, tmp_path / "f.safetensors", takes)
    assert facts.verified.max_rel_error < 1e-12
    small = prunecli.load(tmp_path / "f.safetensors", into=MODELS["SharedFilters"]())
    assert small.second.weight is small.first.weight
    assert isinstance(small.norms[0], nn.BatchNorm2d)
