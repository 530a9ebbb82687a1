"""From a checkpoint to a smaller file, through the public API."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from randomise import randomise, zero_filters
from safetensors import safe_open
from torch import nn

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.errors import BudgetMissed, InputError, NothingRemoved, RecipeError, VerificationError
from prunecli.facts import BudgetFacts, Figures, PruneFacts
from prunecli.pipeline.prune import _insist_on_budget, _undershot
from prunecli.recipe.load import validate
from prunecli.train.loop import Tick

DIGITS = Path(__file__).parents[2] / "recipes" / "digits.safetensors"


def recipe(**fields: object) -> object:
    return validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}} | fields)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("unit", ["flops", "params"])
def test_the_budget_is_met_from_below(unit: str, share: float, checkpoint: str, tmp_path: Path) -> None:
    facts = prunecli.prune(recipe(budget={unit: share}), checkpoint, tmp_path / "out.safetensors")
    before, after = getattr(facts.before, unit), getattr(facts.after, unit)
    assert share - 0.01 <= after / before <= share
    assert facts.budget.met == pytest.approx(after / before, abs=1e-12)
    assert facts.verified.max_rel_error < 1e-12


def test_absolute_budgets(checkpoint: str, tmp_path: Path) -> None:
    facts = prunecli.prune(recipe(budget={"flops": "20M"}), checkpoint, tmp_path / "out.safetensors")
    assert 19.5e6 < facts.after.flops <= 20e6


@pytest.mark.parametrize("method", [{"scope": "layer"}, {"p": 1}, {"name": "random"}, {"min_channels": 7}])
def test_methods(method: dict[str, object], checkpoint: str, tmp_path: Path) -> None:
    facts = prunecli.prune(recipe(method={"name": "magnitude"} | method), checkpoint, tmp_path / "o.safetensors")
    assert 0.49 <= facts.after.flops / facts.before.flops <= 0.5
    if "min_channels" in method:
        assert all(cut.after >= 7 for cut in facts.cuts)


def test_magnitude_removes_the_smallest(tmp_path: Path) -> None:
    module = randomise(build(parse("cifar_resnet20")))
    module.layer1[0].conv1.weight.data[3:7] *= 1e-3
    torch.save(module.state_dict(), tmp_path / "m.pt")
    prunecli.prune(
        recipe(budget={"flops": 0.9}, strip={"round_to": 1}), str(tmp_path / "m.pt"), tmp_path / "o.safetensors"
    )
    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        journal = json.loads(file.metadata()["prunecli"])["journal"]
    cut = next(c for c in journal["cuts"] if "layer1.0.conv1.weight:0" in c["in"])
    assert cut["kept"] == "0-2,7-15"


def test_unstructured_sparsity_is_exact(checkpoint: str, tmp_path: Path) -> None:
    sparse = recipe(method={"name": "magnitude", "structure": "weight"}, budget={"sparsity": 0.9})
    facts = prunecli.prune(sparse, checkpoint, tmp_path / "o.safetensors")
    weights = 268336  # of convolutions and the linear layer
    assert abs(facts.budget.met - 0.9) < 1 / weights
    assert facts.after.nonzero <= facts.before.params - round(0.9 * weights)


@pytest.mark.parametrize("exclude", ["layer2.0.conv1", "layer2", "layer2.*.conv1", r"re:^layer2\.\d\.conv1$"])
def test_exclude(exclude: str, checkpoint: str, tmp_path: Path) -> None:
    facts = prunecli.prune(
        recipe(method={"name": "magnitude", "exclude": [exclude]}), checkpoint, tmp_path / "o.safetensors"
    )
    touched = {cut.group for cut in facts.cuts}
    assert "layer2.0.conv1" not in touched
    assert "layer1.0.conv1" in touched


def test_the_input_model_and_file_stay_as_they_are(checkpoint: str, tmp_path: Path) -> None:
    before = Path(checkpoint).read_bytes()
    prunecli.prune(recipe(), checkpoint, tmp_path / "o.safetensors")
    assert Path(checkpoint).read_bytes() == before


def test_the_same_run_gives_the_same_bytes(checkpoint: str, tmp_path: Path) -> None:
    for name in ("1", "2"):
        prunecli.prune(recipe(method={"name": "random"}, seed=3), checkpoint, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_a_pruned_file_can_be_pruned_again(checkpoint: str, tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    one = prunecli.prune(recipe(), checkpoint, first)
    two = prunecli.prune(recipe(), str(first), second)
    assert two.before.flops == one.after.flops
    assert sum(p.numel() for p in prunecli.load(second).parameters()) == two.after.params


def test_strip_needs_no_decision(tmp_path: Path) -> None:
    torch.save(zero_filters(randomise(build(parse("cifar_resnet20"))), 0.5).state_dict(), tmp_path / "m.pt")
    facts = prunecli.prune(prunecli.load_recipe("strip"), str(tmp_path / "m.pt"), tmp_path / "o.safetensors")
    assert facts.after.params < 0.55 * facts.before.params
    assert facts.budget is None


def test_nothing_to_strip_is_an_outcome(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(NothingRemoved):
        prunecli.prune(prunecli.load_recipe("strip"), checkpoint, tmp_path / "o.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_writes_nothing(checkpoint: str, tmp_path: Path) -> None:
    facts = prunecli.prune(recipe(), checkpoint, None)
    assert facts.output is None
    assert 0.49 <= facts.after.flops / facts.before.flops <= 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(randomise(build(parse("digits_net"))).to(dtype).state_dict(), tmp_path / "m.pt")
    prunecli.prune(recipe(), str(tmp_path / "m.pt"), tmp_path / "o.safetensors")
    small = prunecli.load(tmp_path / "o.safetensors")
    assert {p.dtype for p in small.parameters()} == {dtype}


class Exotic(nn.Module):
    """A user's network: tied weights, a stem without a bias that folding gives one, several activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.again = nn.Linear(8, 12)
        self.again.weight = self.up.weight
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(torch.sigmoid(self.a(x))).mean((2, 3))
        x = self.down(torch.relu(self.up(x)))
        return self.head(torch.relu(self.again(x)))


def exotic() -> nn.Module:
    return Exotic()


def test_a_users_architecture(tmp_path: Path) -> None:
    module = randomise(Exotic())
    module.a.weight.data[:4] = 0
    torch.save(module.state_dict(), tmp_path / "m.pt")
    asked = recipe(arch=f"{__file__}:exotic", input="1x3x6x6", budget={"params": 0.6}, strip={"round_to": 1})
    facts = prunecli.prune(asked, str(tmp_path / "m.pt"), tmp_path / "o.safetensors")
    assert facts.removed_channels > 0
    with pytest.raises(InputError, match="user code"):
        prunecli.load(tmp_path / "o.safetensors")
    small = prunecli.load(tmp_path / "o.safetensors", arch=f"{__file__}:exotic")
    assert small.b.bias is not None
    assert small.up.weight is small.again.weight


def test_what_is_not_equal_is_not_written(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunecli.pipeline import operate as stage

    honest = stage.cut

    def sloppy(module: nn.Module, *args: object, **options: object) -> tuple[nn.Module, object]:
        smaller, journal = honest(module, *args, **options)
        smaller.layer1[0].conv1.weight.data[0] += 1e-6
        return smaller, journal

    monkeypatch.setattr(stage, "cut", sloppy)
    with pytest.raises(VerificationError):
        prunecli.prune(recipe(), checkpoint, tmp_path / "o.safetensors")
    assert list(tmp_path.iterdir()) == []


RELOAD = """
import pickle, sys
def refuse(*args, **kwargs):
    raise AssertionError("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = refuse
import torch, prunecli
torch.load = refuse
module = prunecli.load(sys.argv[1])
torch.manual_seed(0)
with torch.no_grad():
    sys.stdout.write(module(torch.randn(2, 3, 32, 32)).numpy().tobytes().hex())
"""


def test_loads_without_pickle_to_the_same_bits(checkpoint: str, tmp_path: Path) -> None:
    prunecli.prune(recipe(), checkpoint, tmp_path / "o.safetensors")
    found = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path / "o.safetensors")], capture_output=True, text=True, check=True
    )
    torch.manual_seed(0)
    with torch.no_grad():
        here = prunecli.load(tmp_path / "o.safetensors")(torch.randn(2, 3, 32, 32))
    assert found.stdout == here.numpy().tobytes().hex()


def test_real_checkpoints(checkpoints: Path, tmp_path: Path) -> None:
    figures = {"resnet20-12fca82f.th": (269722, 40927872), "resnet56-4bfd9763.th": (853018, 126550656)}
    for name, (params, flops) in figures.items():
        facts = prunecli.prune(
            prunecli.load_recipe("magnitude-flops50"), str(checkpoints / name), tmp_path / "o.safetensors"
        )
        assert isinstance(facts.before, Figures)
        assert (facts.before.params, facts.before.flops) == (params, flops)
        assert 0.49 <= facts.after.flops / flops <= 0.5


def test_real_checkpoints_are_recognised(checkpoints: Path) -> None:
    for depth, params, flops in ((20, 269722, 40927872), (32, 464154, 69468800), (56, 853018, 126550656)):
        facts = prunecli.analyze(str(next(checkpoints.glob(f"resnet{depth}-*.th"))))
        assert (facts.arch, facts.input) == (f"cifar_resnet{depth}", [1, 3, 32, 32])
        assert (facts.params, facts.flops) == (params, flops)


def recovered(checkpoint: str, output: Path, by: str, **fields: object) -> PruneFacts:
    given = {"data": "fake:3x16x16", "recover": {"by": by, "images": 64}} | fields
    return prunecli.prune(recipe(**given), checkpoint, output, prunecli.Opening.like(torch.zeros(1, 3, 16, 16)))


@pytest.mark.parametrize("by", ["least_squares", "batchnorm"])
def test_recovery_changes_weights_and_no_width(by: str, checkpoint: str, tmp_path: Path) -> None:
    plain, better = tmp_path / "plain.safetensors", tmp_path / "better.safetensors"
    prunecli.prune(recipe(), checkpoint, plain)
    facts = recovered(checkpoint, better, by)
    first, second = prunecli.load(plain).state_dict(), prunecli.load(better).state_dict()
    assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in second.items()}
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed
    assert all(("running" in name or "num_batches" in name) == (by == "batchnorm") for name in changed)
    assert facts.pruned is not None
    assert facts.verified.max_rel_error < 1e-12
    left = [note for note in facts.notes if note.startswith("recover left linear as cut: 64 places of the images")]
    assert len(left) == (by == "least_squares")


def test_recovery_before_training_is_reported(checkpoint: str, tmp_path: Path) -> None:
    facts = recovered(checkpoint, tmp_path / "o.safetensors", "least_squares", train={"epochs": 1})
    assert facts.pruned is not None
    assert facts.recovered is not None
    assert facts.recovered.flops == facts.pruned.flops == facts.after.flops


def test_recovery_needs_images(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recover looks at images"):
        prunecli.prune(recipe(recover={}), checkpoint, tmp_path / "o.safetensors")


def test_recovery_where_it_makes_no_sense() -> None:
    with pytest.raises(RecipeError, match="recover"):
        recipe(recover={}, method={"name": "magnitude", "structure": "weight"}, budget={"sparsity": 0.5})


def test_each_step_has_its_part_of_an_epoch(tmp_path: Path) -> None:
    ticks: list[Tick] = []
    fields = {
        "data": "digits",
        "budget": {"flops": 0.8, "iterative": {"steps": 4}},
        "train": {"epochs": 1, "batch_size": 64, "validation": 0.0},
    }
    prunecli.prune(recipe(**fields), DIGITS, tmp_path / "out.safetensors", report=ticks.append)
    assert [tick.step for tick in ticks] == [*range(1, 7), *range(1, 7), *range(1, 6), *range(1, 7)]  # of 23
    assert [tick.finished_epoch for tick in ticks].count(True) == 4


def test_less_than_asked_for_is_said() -> None:
    for unit in ("flops", "params", "size"):
        said = _undershot(BudgetFacts(unit, 0.3, 0.004))
        assert said == [f"0.40 % is left where the {unit} budget asks for 30.00 %"]
    for met in (BudgetFacts("flops", 0.3, 0.295), BudgetFacts("sparsity", 0.9, 0.5), None):
        assert _undershot(met) == []


def test_a_missed_budget_is_no_success_but_no_loss() -> None:
    for met in (BudgetFacts("flops", 0.5, 0.505), BudgetFacts("sparsity", 0.9, 0.9), None):
        _insist_on_budget(met, Path("out.safetensors"))
    with pytest.raises(BudgetMissed, match=r"was not met: 87.00 %; what came of it is in out.safetensors"):
        _insist_on_budget(BudgetFacts("flops", 0.6, 0.87), Path("out.safetensors"))
    with pytest.raises(BudgetMissed):
        _insist_on_budget(BudgetFacts("sparsity", 0.9, 0.8), None)
