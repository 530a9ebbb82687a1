"""Self-supervised pruning: rounds, rewinding, pretext tasks without labels, and what masks have in common."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from courses import course
from torch import Tensor, nn
from torch.nn import functional as F

import prunecli
from prunecli.errors import CheckpointError, DataError, InputError
from prunecli.graph.tape import Example
from prunecli.methods.hook import Batch
from prunecli.methods.pretext import OBJECTIVES, Instance, head_of, quarter_turns, view
from prunecli.methods.selfsup import SelfSupervision
from prunecli.model import Opening, open_model
from prunecli.pipeline.overlap import kept, overlap
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Budget, Train
from prunecli.train.data import Data, open_data
from prunecli.train.linear_probe import linear_probe
from prunecli.train.loop import Trainer

DIGITS = str(Path(__file__).parents[2] / "recipes" / "digits.safetensors")
SHORT = {"epochs": 1, "batch_size": 256, "lr": 0.05, "validation": 0.0}


def recipe(sparsity: float, data: str = "digits", **fields: object) -> object:
    method = {"name": "selfsup", "pretext": SHORT, **fields.pop("method", {})}  # type: ignore[dict-item]
    given = {"version": 1, "data": data, "method": method, "budget": {"sparsity": sparsity}, "strip": {"expand": "off"}}
    return validate(given | fields)


def test_rounds_take_a_fifth_of_what_is_left_and_the_last_one_the_rest() -> None:
    budget = Budget(sparsity=0.9)
    shares = [share * 0.9 for share in SelfSupervision(name="selfsup").progress(budget)]
    assert shares[:-1] == pytest.approx([1 - 0.8**n for n in range(1, len(shares))])
    assert shares[-1] == pytest.approx(0.9)
    assert len(shares) == 11  # 0.8^10 = 10.7 % are left after ten rounds


def test_survivors_are_what_they_were_and_the_masks_are_nested(tmp_path: Path) -> None:
    start = dict(open_model(DIGITS, Opening()).module.named_parameters())
    kept_before: dict[str, set[int]] | None = None
    for rounds in (1, 2):
        path = tmp_path / f"{rounds}.safetensors"
        sparsity = 1 - 0.8**rounds
        facts = prunecli.prune(recipe(sparsity), DIGITS, path)
        model = open_model(str(path), Opening())
        assert 0 <= facts.budget.met - sparsity < 1e-3
        positions = {name: set(found.tolist()) for name, found in kept(model).items()}
        if kept_before is not None:
            assert all(positions[name] <= kept_before[name] for name in positions)
        kept_before = positions
        for name, parameter in model.module.named_parameters():
            if parameter.shape == start[name].shape and parameter.ndim > 1:
                alive = parameter != 0
                assert torch.equal(parameter[alive], start[name][alive]), name
    assert facts.predicted["sparsity in round 2"] == pytest.approx(0.36)
    assert facts.found["sparsity in round 2"] == pytest.approx(0.36, abs=1e-3)


def test_the_last_layer_and_the_norms_stay(tmp_path: Path) -> None:
    path = tmp_path / "o.safetensors"
    prunecli.prune(recipe(0.2), DIGITS, path)
    found, start = (open_model(str(p), Opening()).module for p in (path, DIGITS))
    head = head_of(start, Example((torch.zeros(1, 1, 8, 8),)))
    assert int((found.get_submodule(head).weight == 0).sum()) == int((start.get_submodule(head).weight == 0).sum())


class Backwards(nn.Module):
    """The layer that answers is made first."""

    def __init__(self) -> None:
        super().__init__()
        self.answer, self.body = nn.Linear(32, 10), nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer(self.body(x))


def test_the_last_layer_is_the_one_that_runs_last() -> None:
    assert head_of(Backwards(), Example((torch.zeros(1, 1, 8, 8),))) == "answer"


def test_rotation_labels_are_the_turns() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    turned, answers = quarter_turns(image)
    assert answers.tolist() == [0, 1, 2, 3]
    for quarter in range(4):
        back = turned[quarter : quarter + 1].rot90(-quarter, (2, 3))
        assert torch.equal(back, image)
    symmetric = torch.ones(1, 1, 4, 4)
    assert all(torch.equal(side, symmetric[0]) for side in quarter_turns(symmetric)[0])
    with pytest.raises(InputError, match="square"):
        quarter_turns(torch.zeros(1, 1, 4, 5))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


class Unlabelled:
    """Pixels; whoever asks for a label fails."""

    def __init__(self, data: Data) -> None:
        self._split = data.train

    def __len__(self) -> int:
        return len(self._split)

    def batches(self, *args: object) -> object:
        return self._split.batches(*args)  # type: ignore[arg-type]

    @property
    def labels(self) -> Tensor:
        raise AssertionError("labels were read")


@pytest.mark.parametrize("name", ["rotation", "exemplar", "instance"])
def test_pretext_tasks_learn_and_never_read_labels(name: str) -> None:
    data = open_data("digits", (1, 8, 8), 10)
    blind = Data("blind", lambda: Unlabelled(data), lambda: Unlabelled(data), None)  # type: ignore[arg-type, return-value]
    losses: list[float] = []
    before = net()
    settings = Train(epochs=6, batch_size=128, lr=0.05, momentum=0.9, augment=False)
    fit = Trainer(blind, settings, hooks=[OBJECTIVES[name]()], report=lambda tick: losses.append(tick.loss)).fit(before)
    per_epoch = len(losses) // 6
    assert sum(losses[-per_epoch:]) < 0.95 * sum(losses[:per_epoch])
    assert torch.equal(fit.module[3].weight, before[3].weight)  # the old head is back, untouched
    assert not torch.equal(fit.module[0].weight, before[0].weight)


def test_views_differ_and_keep_the_shape() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16)
    first, second = view(images), view(images)
    assert first.shape == images.shape
    assert not torch.equal(first, second)


def test_processes_see_views_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two see together is what one sees of all the images."""

    def seen(images: Tensor) -> Tensor:
        torch.manual_seed(0)
        return view(images)

    images = torch.rand(8, 3, 16, 16)
    alone = seen(images)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        torch.testing.assert_close(seen(images[rank::2]), alone[rank::2])


def test_instances_are_told_apart_by_a_softmax_over_all_images() -> None:
    """Equation 2 of Wu et al. 2018."""
    hook, images, own = Instance(), torch.randn(6, 128), torch.arange(6)
    bank = F.normalize(torch.randn(50, 128), dim=1)
    hook.restore({"bank": bank.clone()})
    loss = hook.loss(lambda: torch.zeros(()), nn.Identity(), Batch(images, own))
    scores = F.normalize(images, dim=1) @ bank.T / 0.07
    torch.testing.assert_close(loss, F.cross_entropy(scores, own))


def test_a_memory_bank_holds_a_place_of_length_one_for_every_image() -> None:
    module, hook = net(), Instance()
    hook.attach(module, course(10))
    bank = hook.state()["bank"]
    assert bank.shape[0] == 1000
    before = bank.clone()
    hook.loss(lambda: torch.zeros(()), module, Batch(torch.randn(3, 1, 8, 8), torch.tensor([5, 7, 9])))
    changed = (bank != before).any(1).nonzero().flatten().tolist()
    assert changed == [5, 7, 9]
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(1000))


def test_images_without_labels_are_enough(tmp_path: Path) -> None:
    from PIL import Image

    torch.manual_seed(0)
    for number in range(40):
        pixels = torch.randint(0, 256, (8, 8), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    facts = prunecli.prune(recipe(0.3, f"images:{tmp_path}"), DIGITS, tmp_path / "o.safetensors")
    assert facts.before.accuracy is None
    assert facts.budget.met == pytest.approx(0.3, abs=1e-3)
    with pytest.raises(DataError, match="no labels"):
        prunecli.prune(recipe(0.3, f"images:{tmp_path}", train=SHORT), DIGITS, tmp_path / "p.safetensors")


def test_overlap_with_itself_with_labels_and_with_chance(tmp_path: Path) -> None:
    with_labels, blind = tmp_path / "labels.safetensors", tmp_path / "blind.safetensors"
    prunecli.prune(recipe(0.36, method={"objective": "labels"}), DIGITS, with_labels)
    asked = recipe(0.36, report={"overlap_with": str(with_labels), "linear_probe": True})
    facts = prunecli.prune(asked, DIGITS, blind)
    assert facts.found["overlap of random masks"] < facts.found["overlap"] < 1
    assert 0.5 < facts.found["linear probe"] <= 1
    model, whole = open_model(str(blind), Opening()), open_model(DIGITS, Opening())
    same = overlap(model, model, whole)
    assert same.found == 1
    assert set(same.layers.values()) == {1.0}


def test_what_a_report_needs_is_missed_before_the_work(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    plain = {"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}}
    prunecli.prune(validate({**plain, "arch": "cifar_resnet20"}), "cifar_resnet20", other)
    reports = {
        "images with labels": {"linear_probe": True},
        "is another network": {"overlap_with": str(other)},
        "not exist|no such": {"overlap_with": "nowhere.safetensors"},
        "folder": {"layers": str(tmp_path / "nowhere" / "layers.csv")},
    }
    for words, report in reports.items():
        with pytest.raises(InputError, match=words):
            prunecli.prune(validate({**plain, "report": report}), DIGITS, tmp_path / "o.safetensors")
        assert not (tmp_path / "o.safetensors").exists()


def test_a_probe_of_features_that_say_nothing_finds_nothing() -> None:
    model = open_model(DIGITS, Opening())
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.zero_()
    data = open_data("digits", (1, 8, 8), 10)
    assert linear_probe(model.module, model.example, data, 0) < 0.2


def test_features_can_be_trained_once_more_and_the_start_moved(tmp_path: Path) -> None:
    rewound = prunecli.prune(recipe(0.2, method={"rewind": 1}), DIGITS, tmp_path / "a.safetensors")
    trained = prunecli.prune(recipe(0.2, method={"leave": "trained"}), DIGITS, tmp_path / "b.safetensors")
    for facts, name in ((rewound, "a"), (trained, "b")):
        assert facts.budget.met == pytest.approx(0.2, abs=1e-3)
        found = kept(open_model(str(tmp_path / f"{name}.safetensors"), Opening()))
        start = kept(open_model(DIGITS, Opening()))
        assert all(set(found[n].tolist()) <= set(start[n].tolist()) for n in found)


def test_the_start_may_be_an_earlier_checkpoint(tmp_path: Path) -> None:
    early, odd = tmp_path / "early.pt", tmp_path / "odd.pt"
    model = open_model(DIGITS, Opening()).module
    weights = {f"module.{name}": t * 0.5 if t.is_floating_point() else t for name, t in model.state_dict().items()}
    torch.save({"state_dict": weights}, early)
    torch.save({name: t for name, t in weights.items() if "weight" in name}, odd)
    prunecli.prune(recipe(0.3, method={"rewind": str(early)}), DIGITS, tmp_path / "o.safetensors")
    found = open_model(str(tmp_path / "o.safetensors"), Opening()).module.state_dict()
    for name in model.state_dict():
        alive = found[name] != 0
        assert torch.equal(found[name][alive], weights[f"module.{name}"][alive]), name
    with pytest.raises(InputError, match=r"odd.pt has no tensor"):
        prunecli.prune(recipe(0.3, method={"rewind": str(odd)}), DIGITS, tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=r"not exist|no such"):
        prunecli.prune(recipe(0.3, method={"rewind": "nowhere.pt"}), DIGITS, tmp_path / "p.safetensors")


def test_a_real_training_with_labels_after_masks_without(tmp_path: Path) -> None:
    asked = recipe(0.6, method={"fraction": 0.4}, train={"epochs": 6, "lr": 0.05, "batch_size": 64})
    facts = prunecli.prune(asked, DIGITS, tmp_path / "o.safetensors")
    assert facts.budget.met == pytest.approx(0.6, abs=2e-3)
    assert facts.after.accuracy > 0.93
    assert [name for name in facts.predicted if name in facts.found] == list(facts.predicted)


def test_rounds_shrink_by_the_fraction() -> None:
    shares = SelfSupervision(name="selfsup", fraction=0.5).progress(Budget(sparsity=0.875))
    assert [b - a for a, b in pairwise([0.0, *shares])] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
