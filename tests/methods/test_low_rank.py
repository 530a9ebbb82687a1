"""Learned ranks: exact insertion, the number of parameters, factors that are stored as such."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from courses import course
from tampering import tampered
from torch import nn

import prunecli
from prunecli.checkpoint.journal import Journal
from prunecli.errors import InputError
from prunecli.graph.copying import copied
from prunecli.methods.low_rank import LearnedRanks
from prunecli.methods.str import SoftThresholds
from prunecli.model import Opening, open_model
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Budget
from prunecli.surgery.factors import can_factorise

METHOD = SoftThresholds(name="str", structure="rank")


def build() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96, bias=False), nn.ReLU(), nn.Linear(96, 10)
    )


NAMES = ["1.weight", "3.weight", "5.weight"]


def attached(share: float) -> tuple[nn.Module, LearnedRanks]:
    torch.manual_seed(0)
    module = build().double()
    hook = LearnedRanks(METHOD, NAMES, Budget(params=share))
    hook.attach(module, course(10))
    return module, hook


def test_factors_give_what_the_layer_gave() -> None:
    module, _ = attached(0.5)
    torch.manual_seed(0)
    plain, images = build().double(), torch.randn(7, 1, 8, 8).double()
    torch.testing.assert_close(module(images), plain(images), atol=1e-12, rtol=0)


def test_what_is_left_is_the_best_of_its_rank_and_gives_the_same() -> None:
    """Without training the thresholds cut the smallest singular values (Eckart and Young 1936)."""
    module, hook = attached(0.5)
    images = torch.randn(7, 1, 8, 8).double()
    hook.after_step(module, 10)
    expected = module(images)
    hook.finalize(module)
    torch.testing.assert_close(module(images), expected, atol=1e-12, rtol=0)
    assert sum(p.numel() for p in module.parameters()) <= 0.5 * sum(p.numel() for p in build().parameters())
    torch.manual_seed(0)
    weight = build().double()[3].weight
    rank = hook.by_layer()["3.1.weight"]["rank"]
    left, values, right = torch.linalg.svd(weight)
    best = left[:, : int(rank)] * values[: int(rank)] @ right[: int(rank)]
    torch.testing.assert_close(module[3][1].weight @ module[3][0].weight, best, atol=1e-10, rtol=0)


class Reader(nn.Module):
    """Reads an image line by line."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.lines = kind(8, 32, 2, batch_first=True)
        self.out = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lines(x.squeeze(1))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_become_smaller_and_give_the_same(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    plain, images = Reader(kind).double(), torch.randn(5, 1, 8, 8).double()
    module = copy.deepcopy(plain)
    names = [name for name, p in module.named_parameters() if p.ndim > 1]
    hook = LearnedRanks(METHOD, names, Budget(params=0.5))
    hook.attach(module, course(10))
    torch.testing.assert_close(module(images), plain(images), atol=1e-12, rtol=0)
    hook.after_step(module, 10)
    expected = module(images)
    hook.finalize(module)
    torch.testing.assert_close(module(images), expected, atol=1e-12, rtol=0)
    assert sum(p.numel() for p in module.parameters()) <= 0.5 * sum(p.numel() for p in plain.parameters())
    assert {"lines.weight_hh_l0", "lines.weight_ih_l1"} <= set(hook.journal.ranks)
    copied(module)(images)  # what a forward pass leaves behind does not stand in the way
    for name in hook.journal.ranks:
        assert int(torch.linalg.matrix_rank(_weight(module, name))) == hook.journal.ranks[name]


def _weight(module: nn.Module, name: str) -> torch.Tensor:
    owner, _, attribute = name.rpartition(".")
    layer = module.get_submodule(owner)
    return layer[1].weight @ layer[0].weight if isinstance(layer, nn.Sequential) else getattr(layer, attribute)


@pytest.mark.parametrize("place", ["a", "abcde"])
def test_a_recurrent_file_holds_factors_and_can_be_cut_further(place: str, tmp_path: Path) -> None:
    """Wherever its tensors lie in memory: the header of the file, which names the architecture, shifts them."""
    tmp_path = tmp_path / place
    tmp_path.mkdir()
    (tmp_path / "reader.py").write_text("from methods.test_low_rank import Reader\n")
    fields = {"version": 1, "arch": f"{tmp_path / 'reader.py'}:Reader", "input": "1x1x8x8"}
    torch.manual_seed(0)
    torch.save(Reader().state_dict(), tmp_path / "random.pt")
    low = {**fields, "method": {"name": "str", "structure": "rank"}, "budget": {"params": 0.5}, "data": "digits"}
    train = {"epochs": 2, "lr": 0.05, "batch_size": 64}
    facts = prunecli.prune(validate({**low, "train": train}), str(tmp_path / "random.pt"), tmp_path / "low.safetensors")
    assert facts.after.params <= 0.5 * facts.before.params
    opening = Opening(arch=fields["arch"])
    small = open_model(str(tmp_path / "low.safetensors"), opening)
    assert sum(p.numel() for p in small.module.parameters()) == facts.after.params
    assert "lines.parametrizations.weight_hh_l0.original0" in small.module.state_dict()
    cut = {**fields, "method": {"name": "magnitude"}, "budget": {"params": 0.8}, "strip": {"round_to": 1}}
    result = prunecli.prune(validate(cut), str(tmp_path / "low.safetensors"), tmp_path / "less.safetensors")
    assert result.verified.max_rel_error < 1e-12
    open_model(str(tmp_path / "less.safetensors"), opening)


class Encoder(nn.Module):
    """Its layers read the weights of their linear layers themselves, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 64, batch_first=True, dropout=0.0)
        self.lines = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lines(x.squeeze(1)).mean(1))


def test_layers_whose_weight_is_read_by_another_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, images = Encoder().double().eval(), torch.randn(5, 1, 8, 8).double()
    module = copy.deepcopy(plain)
    hook = LearnedRanks(METHOD, [n for n, p in module.named_parameters() if p.ndim > 1], Budget(params=0.6))
    hook.attach(module, course(10))
    with torch.no_grad():
        torch.testing.assert_close(module(images), plain(images), atol=1e-12, rtol=0)
    hook.finalize(module)
    assert "lines.layers.0.linear1.weight" in hook.journal.ranks
    slow = module(images)
    with torch.no_grad():  # one kernel for the whole layer, which takes the product and the bias
        torch.testing.assert_close(module(images), slow, atol=1e-12, rtol=0)

    fields = {"version": 1, "data": "digits", "input": "1x1x8x8", "train": {"epochs": 1, "batch_size": 64}}
    recipe = validate({**fields, "method": {"name": "str", "structure": "rank"}, "budget": {"params": 0.6}})
    facts = prunecli.prune(recipe, Encoder(), tmp_path / "low.safetensors")
    assert facts.budget.met <= 0.6
    prunecli.load(tmp_path / "low.safetensors", into=Encoder())(images.float())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    folder = tmp_path_factory.mktemp("rank")
    (folder / "mlp.py").write_text("from methods.test_low_rank import build\n")
    fields = {"version": 1, "data": "digits", "arch": f"{folder / 'mlp.py'}:build", "input": "1x1x8x8"}
    train = {"epochs": 12, "lr": 0.02, "batch_size": 64}
    torch.manual_seed(0)
    torch.save(build().state_dict(), folder / "random.pt")
    prunecli.finetune(validate({**fields, "train": train}), str(folder / "random.pt"), folder / "dense.safetensors")
    method = {"name": "str", "structure": "rank"}
    recipe = validate({**fields, "method": method, "budget": {"params": 0.4}, "train": train})
    return folder / "low.safetensors", prunecli.prune(
        recipe, str(folder / "dense.safetensors"), folder / "low.safetensors"
    )


def arch_of(path: Path) -> Opening:
    return Opening(arch=f"{path.parent / 'mlp.py'}:build")


def test_a_real_training_meets_the_params_with_factors_in_the_file(pruned: tuple[Path, object]) -> None:
    path, facts = pruned
    assert 0.38 <= facts.budget.met <= 0.4
    assert facts.after.params == pytest.approx(facts.budget.met * facts.before.params)
    assert facts.after.flops < 0.5 * facts.before.flops
    assert facts.after.accuracy > facts.before.accuracy - 0.06
    module = open_model(str(path), arch_of(path)).module
    assert isinstance(module[3], nn.Sequential)


def test_factors_can_be_cut_further_and_tuned(pruned: tuple[Path, object], tmp_path: Path) -> None:
    path, _ = pruned
    arch = {"version": 1, "arch": arch_of(path).arch}
    cut = {**arch, "method": {"name": "magnitude"}, "budget": {"params": 0.8}}
    facts = prunecli.prune(validate(cut), str(path), tmp_path / "smaller.safetensors")
    assert facts.budget.met <= 0.8
    assert facts.verified.max_rel_error < 1e-12
    tuned = {**arch, "data": "digits", "train": {"epochs": 1}}
    prunecli.finetune(validate(tuned), str(tmp_path / "smaller.safetensors"), tmp_path / "tuned.safetensors")


def test_factors_have_no_zeros_to_compare(pruned: tuple[Path, object], tmp_path: Path) -> None:
    path, _ = pruned
    some, layers, dense = tmp_path / "some.safetensors", tmp_path / "layers.csv", str(path.parent / "dense.safetensors")
    fields = {"version": 1, "arch": arch_of(path).arch}
    low = {"method": {"name": "str", "structure": "rank", "exclude": ["5"]}, "budget": {"params": 0.6}}
    prunecli.prune(validate({**fields, **low, "data": "digits", "train": {"epochs": 1, "lr": 0.01}}), dense, some)
    cut = {**fields, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}}
    asked = {**cut, "report": {"layers": str(layers), "overlap_with": str(some)}}
    prunecli.prune(validate(asked), dense, tmp_path / "o.safetensors")
    rows = dict(line.split(",", 1) for line in layers.read_text().splitlines())
    assert rows.pop("layer") == "keep,overlap"
    assert {name for name, values in rows.items() if not values.endswith(",")} == {"5"}
    with pytest.raises(InputError, match="no zeros to compare"):
        prunecli.prune(validate({**cut, "report": {"overlap_with": str(path)}}), dense, None)


def test_a_dry_run_writes_no_layers(pruned: tuple[Path, object], tmp_path: Path) -> None:
    path, _ = pruned
    fields = {"version": 1, "arch": arch_of(path).arch, "report": {"layers": str(tmp_path / "layers.csv")}}
    recipe = validate({**fields, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}})
    prunecli.prune(recipe, str(path.parent / "dense.safetensors"), None)
    assert not list(tmp_path.iterdir())


def test_factors_are_not_factorised_again(pruned: tuple[Path, object], tmp_path: Path) -> None:
    path, _ = pruned
    fields = {"version": 1, "data": "digits", "arch": arch_of(path).arch, "train": {"epochs": 1, "lr": 0.01}}
    recipe = validate({**fields, "method": {"name": "str", "structure": "rank"}, "budget": {"params": 0.1}})
    with pytest.raises(InputError, match="linear and recurrent layers of rank 1 leave"):
        prunecli.prune(recipe, str(path), tmp_path / "again.safetensors")
    module = open_model(str(path), arch_of(path)).module
    assert not can_factorise(module, "3.0.weight")


def test_a_cut_model_can_be_factorised() -> None:
    kept = {("1.weight", 0): (0, 2), ("1.bias", 0): (0, 2), ("3.weight", 1): (0, 2)}
    earlier = Journal(kept, {"1": {"out_features": 2}, "3": {"in_features": 2}})
    both = earlier.then(Journal(ranks={"3.weight": 1}))
    assert set(both.kept) == {("1.weight", 0), ("1.bias", 0), ("3.0.weight", 1)}
    assert both.attributes == {"1": {"out_features": 2}, "3.0": {"in_features": 2}}
    assert Journal.from_json(both.to_json()) == both


LIES = {
    "no such layer": lambda j: j["ranks"].update({"nowhere.weight": 3}),
    "no linear layer": lambda j: j["ranks"].update({"2.weight": 3}),
    "no weight of a recurrent layer": lambda j: j["ranks"].update({"3.weight_hh_l0": 3}),
    "not even a name": lambda j: j["ranks"].update({"": 3}),
    "a rank of nothing": lambda j: j["ranks"].update({"3.weight": 0}),
    "a rank that is too large": lambda j: j["ranks"].update({"3.weight": 10**9}),
    "a rank that is another": lambda j: j["ranks"].update({"3.weight": 1}),
    "a word": lambda j: j["ranks"].update({"3.weight": "7"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_journals_are_refused(lie: str, pruned: tuple[Path, object], tmp_path: Path) -> None:
    path, _ = pruned
    with pytest.raises(InputError):
        open_model(str(tampered(path, LIES[lie], tmp_path)), arch_of(path))


def test_large_singular_values_can_go_as_well() -> None:
    module = build().double()
    with torch.no_grad():
        for name in NAMES:
            module.get_parameter(name).mul_(50)
    hook = LearnedRanks(METHOD, NAMES, Budget(params=0.3))
    hook.attach(module, course(10))
    hook.finalize(module)
    assert hook.outcomes()["params"] <= 0.3


def test_what_cannot_be_met_is_refused() -> None:
    module = build()
    with pytest.raises(InputError, match="cannot be met"):
        LearnedRanks(METHOD, NAMES, Budget(params=0.01)).attach(module, course(10))


def test_a_weight_of_several_layers_stays_whole() -> None:
    """Factors in the place of one of them would leave the weight where it is for the others."""
    module = build()
    module.append(nn.Linear(96, 96))
    module[6].weight = module[3].weight
    assert [can_factorise(module, name) for name in NAMES] == [True, False, True]
    twice = nn.Sequential(module[1], nn.ReLU(), module[3], module[3])
    assert [can_factorise(twice, name) for name in ("0.weight", "2.weight")] == [True, False]
