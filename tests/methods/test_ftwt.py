"""FTWT: the authors' targets, who learns from what, FLOPs counted by hand, and single images that skip channels."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from courses import course
from hypothesis import given
from hypothesis import strategies as st
from interruptions import continued
from randomise import randomise
from tampering import tampered
from torch import Tensor, nn
from torch.nn import functional as F

import prunecli
from prunecli.checkpoint.journal import Gate, Journal
from prunecli.cost.count import flops
from prunecli.cost.dynamic import dynamic_cost, masks_of
from prunecli.errors import InputError
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.methods.ftwt import FireTogether
from prunecli.methods.gating import Gating, Standardised, heaviest
from prunecli.methods.hook import Batch
from prunecli.model import Opening, open_model
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Train
from prunecli.surgery import gates
from prunecli.surgery.gates import candidates, gates_of, install
from prunecli.train.data import open_data
from prunecli.train.loop import Trainer

STEPS = [step / 20 for step in range(1, 21)]
MAXIMA = (5.5, 7.9, 0.3, 8.6, 2.2, 3.1, 0.9)


def kept(maxima: tuple[float, ...], r: float) -> list[int]:
    output = torch.tensor(maxima)[None, :, None, None] * torch.tensor([[0.2, -1.0], [0.5, 0.0]])
    return heaviest(output, r)[0].nonzero().flatten().tolist()  # type: ignore[no-any-return]


def test_the_golden_masks() -> None:
    assert kept(MAXIMA, 0.95) == [0, 1, 3, 5]
    assert kept(MAXIMA, 0.96) == [0, 1, 3, 4, 5]
    assert len(kept(MAXIMA, 0.999)) == 6
    assert kept(MAXIMA, 0.5) == [3]
    assert kept(MAXIMA, 0.3) == [3]  # the reference keeps none
    assert len(kept(MAXIMA, 1.0)) == 7


def test_an_image_that_is_zero_everywhere_keeps_one_channel() -> None:
    assert heaviest(torch.zeros(2, 3, 4, 4), 0.9).sum(1).tolist() == [1, 1]
    assert kept((0.0, 4.0, 0.0, 1.0), 1.0) == [1, 3]


@given(st.integers(0, 10_000), st.sampled_from(STEPS), st.sampled_from(STEPS))
def test_a_larger_r_keeps_a_superset_whatever_the_scale(seed: int, first: float, second: float) -> None:
    output = torch.randn(3, 9, 2, 2, generator=torch.Generator().manual_seed(seed)).relu()
    less, more = (heaviest(output, r) for r in sorted((first, second)))
    assert bool((more >= less).all())
    assert torch.equal(heaviest(output * 8, first), heaviest(output, first))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(heaviest(output[:, order], first), heaviest(output, first)[:, order])
    assert torch.equal(heaviest(output[1:2], first), heaviest(output, first)[1:2])


class Block(nn.Module):
    """Dense, depthwise, a residual, and a convolution without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.expand, self.norm1 = nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10)
        self.depth, self.norm2 = nn.Conv2d(10, 10, 3, padding=1, groups=10, bias=False), nn.BatchNorm2d(10)
        self.project, self.norm3 = nn.Conv2d(10, 6, 1), nn.BatchNorm2d(6)
        self.plain, self.last = nn.Conv2d(6, 8, 3, stride=2), nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.hardtanh(self.norm1(self.expand(x)), 0, 6)
        y = F.silu(self.norm2(self.depth(y)))
        x = x + self.norm3(self.project(y))
        x = F.max_pool2d(F.relu(self.plain(x)), 2)
        out: Tensor = self.fc(self.last(x).mean((2, 3)))
        return out


EXAMPLE = Example((torch.zeros(1, 3, 12, 12, dtype=torch.float64),))


def gated(seed: int = 0) -> tuple[nn.Module, tuple[Gate, ...]]:
    torch.manual_seed(seed)
    module = randomise(Block()).double().eval()
    gates = tuple(found.gate for found in candidates(module, EXAMPLE))
    install(module, gates)
    for layer in gates_of(module).values():
        nn.init.normal_(layer.head.weight, std=3.0)
        nn.init.normal_(layer.head.bias)
    return module, gates


def test_what_can_be_gated() -> None:
    _, gates = gated()
    assert [(g.conv, g.norm) for g in gates] == [("expand", "norm1"), ("depth", "norm2"), ("plain", "")]
    assert [g.readers for g in gates] == [(), ("project",), ("last",)]


@pytest.mark.parametrize("groups", [1, 6, 3])
def test_two_filters_for_each_input_are_not_gated(groups: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=groups), nn.ReLU())
    module.append(nn.Conv2d(12, 4, 1))
    found = candidates(module.double(), EXAMPLE)
    assert [known.gate.conv for known in found] == (["2"] if groups == 1 else [])
    if groups > 1:
        with pytest.raises(TypeError, match="can be skipped"):
            install(module, [Gate("2", "")])


@pytest.fixture(autouse=True)
def _always_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small feature maps are not worth skipping for; here they are what is tested."""
    for price in ("COPY", "PICK", "START"):
        monkeypatch.setattr(gates, price, 0)


@pytest.mark.parametrize("start", [0, 10**18])
@pytest.mark.parametrize("seed", range(5))
def test_a_single_image_that_skips_channels_gives_what_the_mask_gives(
    seed: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "START", start)
    module, _ = gated(seed)
    images = torch.randn(6, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        together = module(images)
        alone = torch.cat([module(image[None]) for image in images])
    torch.testing.assert_close(alone, together, atol=1e-12, rtol=0)
    closed = [~mask for mask in masks_of(module, [images]).values()]
    assert any(mask.any() for mask in closed)


def test_a_single_image_is_computed_with_fewer_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = gated()
    image = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    asked_for = [int(mask.sum()) for mask in masks_of(module, [image]).values()]
    widths: list[int] = []
    convolved = gates._convolved

    def spy(conv: nn.Conv2d, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        widths.append(len(weight))
        return convolved(conv, x, weight, *rest)

    monkeypatch.setattr(gates, "_convolved", spy)
    with torch.no_grad():
        module(image)
    expand, depth, _, plain, _ = widths
    assert [expand, depth, plain] == asked_for
    assert sum(asked_for) < sum(layer.head.out_features for layer in gates_of(module).values())


def test_gates_take_the_mode_of_the_layer() -> None:
    module = randomise(Block()).double().eval()
    install(module, [found.gate for found in candidates(module, EXAMPLE)])
    assert not any(layer.training for layer in module.modules())


@pytest.mark.parametrize("bias", [-1.0, 1.0])
def test_nothing_asked_for_and_nothing_there(bias: float) -> None:
    module, _ = gated()
    with torch.no_grad():
        for layer in gates_of(module).values():
            layer.head.weight.zero_()
            layer.head.bias.fill_(bias)
        gates_of(module)["plain"].conv.bias.zero_()
        for images in (torch.randn(3, 3, 12, 12).double(), torch.zeros(3, 3, 12, 12).double()):
            alone = torch.cat([module(image[None]) for image in images])
            torch.testing.assert_close(alone, module(images), atol=1e-12, rtol=0)


def test_heads_that_ask_for_everything_leave_the_network_as_it_is() -> None:
    torch.manual_seed(0)
    module, images = randomise(Block()).double().eval(), torch.randn(4, 3, 12, 12, dtype=torch.float64)
    expected = module(images)
    gates = [found.gate for found in candidates(module, EXAMPLE)]
    assert torch.equal(install(module, gates)(images), expected)


def by_hand(module: nn.Module, expand: Tensor, depth: Tensor, plain: Tensor) -> Tensor:
    """FLOPs of each image: depthwise channels count where input and output are open, the residual is dense."""
    full, half = 144, 25
    k1, k2, k3 = expand.sum(1), depth.sum(1), plain.sum(1)
    found = full * 3 * 9 * 6 + full * 6 * k1 + full * 9 * (expand * depth).sum(1) + full * k2 * 6
    found = found + half * 6 * 9 * k3 + 4 * k3 * 4 + 40
    heads = 6 * 10 + 10 * 10 + 6 * 8
    traced = trace(module, EXAMPLE)
    norms = flops(traced).by_module(np.ones(traced.count, dtype=np.bool_))
    return found + heads + norms["expand.norm"] * k1 / 10 + norms["depth.norm"] * k2 / 10 + norms["norm3"]


def test_flops_of_every_image_are_those_of_its_open_channels() -> None:
    module, _ = gated()
    masks = masks_of(module, [torch.randn(20, 3, 12, 12, dtype=torch.float64)])
    parts = [torch.from_numpy(masks[name]).double() for name in ("expand", "depth", "plain")]
    np.testing.assert_allclose(dynamic_cost(module, EXAMPLE)(masks), by_hand(module, *parts).numpy())


def test_closed_channels_are_exactly_zero_whatever_their_weights() -> None:
    module, _ = gated()
    images = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        before = module(images)
        masks = masks_of(module, [images])
        layer = gates_of(module)["expand"]
        shut = torch.from_numpy(~masks["expand"][0])
        assert shut.any()
        layer.conv.weight[shut] = 123.0
        layer.norm.bias[shut] = -7.0
    assert torch.equal(module(images), before)


def test_a_standardised_head_is_a_plain_layer() -> None:
    torch.manual_seed(0)
    head = Standardised(torch.randn(5).double(), torch.rand(5).double(), 3)
    nn.init.normal_(head.weight)
    x = torch.randn(7, 5).double()
    torch.testing.assert_close(head.plain()(x), head(x))
    constant = Standardised(torch.ones(2), torch.zeros(2), 3)
    assert bool(constant(torch.ones(1, 2)).isfinite().all())


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_the_task_teaches_the_network_and_the_masks_teach_the_heads(mode: str) -> None:
    torch.manual_seed(0)
    module = randomise(Block())
    hook = Gating(FireTogether(name="ftwt", mode=mode, r=0.7, images=64), None)  # type: ignore[arg-type]
    hook.attach(module, course(10, shape=(3, 12, 12)))
    hook.optimizer(module, Train())
    module.train()
    for layer in gates_of(module).values():
        nn.init.normal_(layer.head.weight, std=0.01)  # at the start they are zero, and pass nothing on
    images = torch.randn(8, 3, 12, 12)
    heads = {f"{name}.head.{n}" for name, layer in gates_of(module).items() for n, _ in layer.head.named_parameters()}

    def learned(task: Tensor | None) -> set[str]:
        module.zero_grad(set_to_none=True)
        out = module(images)
        loss = hook.loss(lambda: torch.zeros(()), module, Batch(images, torch.arange(8))) if task is None else out.sum()
        loss.backward()
        return {n for n, p in module.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}

    by_task = learned(torch.ones(()))
    assert not by_task & heads
    by_masks = learned(None)
    assert heads & by_masks
    assert bool(by_masks - heads) == (mode == "joint")


def test_the_estimate_before_training_is_the_count_of_the_targets() -> None:
    """The targets are computed here once more, layer by layer, each on what the masks before it leave."""
    torch.manual_seed(0)
    block, known = randomise(Block()).double(), course(10, shape=(3, 12, 12))
    images = torch.cat(list(known.images(100))).double()
    known = replace(known, images=lambda count: iter([images[:count]]), example=EXAMPLE)
    block.eval()
    with torch.no_grad():
        x = F.relu(block.stem(images))
        y = F.hardtanh(block.norm1(block.expand(x)), 0, 6)
        first = heaviest(y, 0.6)
        z = F.silu(block.norm2(block.depth(y * first[:, :, None, None])))
        second = heaviest(z, 0.6)
        x = x + block.norm3(block.project(z * second[:, :, None, None]))
        third = heaviest(F.relu(block.plain(x)), 0.6)
    traced = trace(block, EXAMPLE)
    whole = flops(traced)(np.ones(traced.count, dtype=np.bool_))
    hook = Gating(FireTogether(name="ftwt", r=0.6, images=100), None)
    hook.attach(block, known)
    expected = float(by_hand(block, first, second, third).mean()) / whole
    assert hook.predictions() == {"r": 0.6, "flops": pytest.approx(expected)}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip


def test_resumed_and_uninterrupted_runs_agree_bit_for_bit(tmp_path: Path) -> None:
    data, settings = open_data("digits", (1, 8, 8), 10), Train(epochs=2, batch_size=256, save_seconds=0)

    def run(**options: object) -> dict[str, Tensor]:
        hook = Gating(FireTogether(name="ftwt", images=128), 0.6)
        return Trainer(data, settings, hooks=[hook], **options).fit(net()).module.state_dict()  # type: ignore[arg-type]

    for moment in (5, 9):  # while the heads learn, and after
        resumed = continued(run, tmp_path, moment)
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in run().items())


DIGITS = str(Path(__file__).parents[2] / "recipes" / "digits.safetensors")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    path = tmp_path_factory.mktemp("gated") / "gated.safetensors"
    fields = {
        "version": 1, "data": "digits", "method": {"name": "ftwt", "images": 512}, "budget": {"flops": 0.5},
        "train": {"epochs": 8, "lr": 0.02, "batch_size": 64},
    }  # fmt: skip
    return path, prunecli.prune(validate(fields), DIGITS, path)


def test_a_real_training_meets_the_flops_and_keeps_the_accuracy(pruned: tuple[Path, object]) -> None:
    _, facts = pruned
    assert 0.49 <= facts.budget.met <= 0.5
    assert facts.predicted["flops"] <= 0.5
    assert facts.found["flops before the last shift"] == pytest.approx(0.5, abs=0.04)  # it was trained with as many
    assert facts.after.flops / facts.before.flops == pytest.approx(0.5, abs=0.02)
    assert facts.after.accuracy > facts.before.accuracy - 0.03
    assert facts.verified.max_rel_error < 1e-12


def test_the_file_holds_gates_and_heads_and_loads_in_a_process_of_its_own(pruned: tuple[Path, object]) -> None:
    path, _ = pruned
    module = prunecli.load(path)
    layers = gates_of(module)
    assert layers
    data = open_data("digits", (1, 8, 8), 10)
    images = next(iter(data.test.batches([torch.arange(64)])))
    with torch.no_grad():
        alone = torch.cat([module(image[None]) for image in images])
        torch.testing.assert_close(alone, module(images), atol=1e-5, rtol=1e-5)
    code = f"import prunecli, torch; print(float(prunecli.load({str(path)!r})(torch.ones(2, 1, 8, 8)).sum()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with torch.no_grad():
        assert float(done.stdout) == pytest.approx(float(module(torch.ones(2, 1, 8, 8)).sum()), rel=1e-5)


def test_analyze_tells_how_the_flops_are_spread(pruned: tuple[Path, object]) -> None:
    path, facts = pruned
    found = prunecli.analyze(str(path), data="digits")
    assert found.dynamic.images == 360
    assert found.dynamic.mean == facts.after.flops
    ordered = [found.dynamic.least, *found.dynamic.percentiles.values(), found.dynamic.most]
    assert ordered == sorted(ordered)
    assert found.dynamic.least < found.dynamic.most < found.flops
    assert any("gated" in note for note in found.notes)


def test_it_exports_as_masks_and_says_so(pruned: tuple[Path, object], tmp_path: Path) -> None:
    path, _ = pruned
    facts = prunecli.export(str(path), tmp_path / "gated.pt2")
    assert facts.max_abs_error < 1e-4
    assert "masks" in facts.notes[0]


def test_a_gated_model_can_be_tuned_and_cut_further(pruned: tuple[Path, object], tmp_path: Path) -> None:
    path, _ = pruned
    fields = {"version": 1, "data": "digits", "method": {"name": "magnitude"}, "budget": {"params": 0.7}}
    facts = prunecli.prune(validate(fields), str(path), tmp_path / "smaller.safetensors")
    assert facts.budget.met <= 0.7
    assert gates_of(prunecli.load(tmp_path / "smaller.safetensors"))
    tuned = prunecli.finetune(
        validate({"version": 1, "data": "digits", "train": {"epochs": 2, "lr": 0.02}}),
        str(tmp_path / "smaller.safetensors"), tmp_path / "tuned.safetensors",
    )  # fmt: skip
    assert tuned.after.accuracy > facts.after.accuracy + 0.1


def test_a_pruned_model_can_be_gated(tmp_path: Path) -> None:
    cut = {"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.7}}
    prunecli.prune(validate(cut), DIGITS, tmp_path / "cut.safetensors")
    fields = {
        "version": 1, "data": "digits", "method": {"name": "ftwt", "images": 128, "r": 0.9},
        "train": {"epochs": 1, "lr": 0.02},
    }  # fmt: skip
    prunecli.prune(validate(fields), str(tmp_path / "cut.safetensors"), tmp_path / "gated.safetensors")
    model = open_model(str(tmp_path / "gated.safetensors"), Opening())
    assert gates_of(model.module)
    assert model.journal.kept


def test_what_cannot_be_met_says_the_nearest(tmp_path: Path) -> None:
    fields = {
        "version": 1, "data": "digits", "method": {"name": "ftwt"}, "budget": {"flops": 0.005}, "train": {"epochs": 1},
    }  # fmt: skip
    with pytest.raises(InputError, match="cannot be met"):
        prunecli.prune(validate(fields), DIGITS, tmp_path / "o.safetensors")


def test_journals_of_gates() -> None:
    gates = (Gate("a.conv1", "a.bn1", ("a.conv2",)), Gate("b", ""))
    earlier = Journal({("a.conv1.weight", 0): (0, 2), ("a.bn1.bias", 0): (0, 2), ("fc.weight", 1): (1,)})
    both = earlier.then(Journal({("a.conv1.conv.weight", 0): (1,)}, gates=gates))
    heads = {("a.conv1.head.weight", 0), ("a.conv1.head.bias", 0)}
    assert set(both.kept) == {("a.conv1.conv.weight", 0), ("a.conv1.norm.bias", 0), ("fc.weight", 1), *heads}
    assert both.kept["a.conv1.conv.weight", 0] == (2,)
    assert Journal.from_json(both.to_json()) == both


LIES = {
    "no such layer": lambda j: j["gates"][0].update(conv="nowhere"),
    "a number for a name": lambda j: j["gates"][0].update(conv=3),
    "no name": lambda j: j["gates"][0].update(conv=""),
    "a linear layer": lambda j: j["gates"][0].update(conv="head"),
    "a norm that is none": lambda j: j["gates"][0].update(norm="head"),
    "the same gate twice": lambda j: j["gates"].append(j["gates"][0]),
    "readers that are numbers": lambda j: j["gates"][0].update(readers=[3]),
    "gates that are none": lambda j: j.update(gates=[7]),
    "a word": lambda j: j.update(gates="conv1"),
    "no gates at all": lambda j: j.update(gates=[]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_journals_are_refused(lie: str, pruned: tuple[Path, object], tmp_path: Path) -> None:
    path, _ = pruned
    with pytest.raises(InputError):
        open_model(str(tampered(path, LIES[lie], tmp_path)), Opening())


@pytest.mark.parametrize("gate", [Gate("fc", ""), Gate("nowhere", ""), Gate("conv", "fc"), Gate("conv", "", ("fc",))])
def test_gates_that_name_no_such_layer_are_refused(gate: Gate) -> None:
    module = nn.Module()
    module.conv, module.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
    with pytest.raises((AttributeError, TypeError)):
        install(module, [gate])
