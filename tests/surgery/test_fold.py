"""Folding batch norm: the same function in eval, one layer less, and nothing folded that others see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from randomise import randomise
from torch import nn
from torch.nn import functional as F

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.recipe.load import validate
from prunecli.surgery.fold import drop, fold_batchnorm
from prunecli.surgery.verify import compare

DIGITS = Path(__file__).parents[2] / "recipes" / "digits.safetensors"


def check(module: nn.Module, *shape: int) -> tuple[str, ...]:
    module = randomise(module).double()
    example = Example((torch.zeros(2, *shape, dtype=torch.float64),))
    folded, journal = fold_batchnorm(module, example)
    assert compare(module, folded, [random_example(example, 0)], torch.float64).max_rel_error < 1e-12
    assert all(isinstance(folded.get_submodule(name), nn.Identity) for name in journal.folded)
    return journal.folded


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 8, 8)),
        (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False), (4, 8, 8)),
        (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), (4, 8)),
        (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (4, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 8, 8)),
        (nn.ConvTranspose2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 8, 8)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (4,)),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (4,)),
    ],
)
def test_every_kind_of_layer(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    assert check(nn.Sequential(layer, norm, nn.ReLU()), *shape) == ("1",)


@pytest.mark.parametrize("name", ["cifar_resnet20", "torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x1_0"])
def test_every_norm_of_a_network_goes(name: str) -> None:
    module = build(parse(name))
    norms = [n for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert list(check(module, 3, 64, 64)) == sorted(norms)


class Seen(nn.Module):
    """The convolution's result is used beside the norm; another norm stands before its layer; one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.seen, self.before, self.twice = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = self.second(F.relu(self.before(y + self.seen(y))))
        return self.twice(self.third(self.twice(z)))


def test_nothing_is_folded_that_others_see() -> None:
    assert check(Seen(), 3, 8, 8) == ()


def test_only_batch_norms_are_dropped() -> None:
    with pytest.raises(TypeError, match="is no batch norm"):
        drop(nn.Sequential(nn.Conv2d(3, 3, 1)), ("0",))


@pytest.mark.parametrize("expand", ["off", "always"])
def test_channels_are_cut_and_what_is_left_is_folded(expand: str, tmp_path: Path) -> None:
    source, output = tmp_path / "dense.pt", tmp_path / "o.safetensors"
    torch.save(randomise(build(parse("cifar_resnet20"))).state_dict(), source)
    fields = {"version": 1, "method": {"name": "magnitude"}, "budget": {"flops": 0.5}}
    plain = prunecli.prune(validate(fields), str(source), tmp_path / "plain.safetensors")
    facts = prunecli.prune(
        validate({**fields, "strip": {"fold_batchnorm": True, "expand": expand}}), str(source), output
    )
    assert facts.verified.max_rel_error < 1e-12
    assert facts.after.flops < plain.after.flops
    models = [prunecli.load(path).double() for path in (tmp_path / "plain.safetensors", output)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in models[1].modules())
    tests = [random_example(Example((torch.zeros(2, 3, 32, 32, dtype=torch.float64),)), 0)]
    assert compare(*models, tests, torch.float64).max_rel_error < 1e-5  # weights in the file are float32
    again = prunecli.prune(validate({**fields, "budget": {"flops": 0.8}}), str(output), tmp_path / "again.safetensors")
    assert again.budget.met <= 0.8


@pytest.mark.parametrize("more", [{"train": {"epochs": 2, "lr": 0.05}}, {"recover": {}}], ids=["train", "recover"])
def test_what_wins_accuracy_back_still_has_its_batch_norms(more: dict[str, object], tmp_path: Path) -> None:
    fields = {"version": 1, "data": "digits", "method": {"name": "magnitude"}, "budget": {"flops": 0.5}, **more}
    runs = {}
    for fold in (False, True):
        output = tmp_path / f"{fold}.safetensors"
        facts = prunecli.prune(validate({**fields, "strip": {"fold_batchnorm": fold}}), DIGITS, output)
        runs[fold] = facts, prunecli.load(output)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in runs[True][1].modules())
    tests = [random_example(Example((torch.zeros(2, 1, 8, 8),)), 0)]
    assert compare(*(module for _, module in runs.values()), tests, torch.float64).max_rel_error < 1e-5
    assert runs[True][0].after.accuracy == runs[False][0].after.accuracy > 0.9
    assert [note for note in runs[True][0].notes if "with batch norms folded" in note]
