"""Criteria: closed forms on small networks, and each one's budget met on a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from randomise import randomise
from torch import Tensor, nn
from torch.nn import functional as F

import prunecli
from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.errors import InputError, RecipeError
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.methods.base import Evidence, Method
from prunecli.methods.table import method_class, method_names
from prunecli.recipe.load import validate

WITH_IMAGES = ("taylor", "fisher", "snip", "wanda")
PICTURES, LABELS = torch.randn(6, 5).double(), torch.tensor([0, 1, 2, 0, 1, 2])


def method(name: str, **fields: object) -> Method:
    return method_class(name).model_validate({"name": name, **fields})


def batches(count: int):  # type: ignore[no-untyped-def]
    yield PICTURES[: count // 2], LABELS[: count // 2]
    yield PICTURES[count // 2 : count], LABELS[count // 2 : count]


def linear() -> tuple[nn.Module, Evidence]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    return module, Evidence(module, Example((PICTURES[:1],)), 0, batches)


def gradient(module: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
    return torch.autograd.grad(F.cross_entropy(module(pictures), labels), module[0].weight)[0]


def test_first_and_second_order_by_hand() -> None:
    module, evidence = linear()
    first, second = gradient(module, PICTURES[:3], LABELS[:3]), gradient(module, PICTURES[3:], LABELS[3:])
    weight, mean, squared = module[0].weight.detach(), (first + second) / 2, (first**2 + second**2) / 2
    expected = {
        "taylor": (mean * weight) ** 2,
        "snip": (mean * weight).abs(),
        "fisher": weight**2 * squared / 2,
    }
    for name, value in expected.items():
        found = method(name, images=6).saliencies(evidence)["0.weight"]  # type: ignore[attr-defined]
        torch.testing.assert_close(found, value)


def test_a_channels_saliency_is_the_sum_over_its_slices() -> None:
    module, evidence = linear()
    channels = trace(module, evidence.example)
    group = next(g for g in channels.groups if not g.frozen)
    scores = method("taylor", images=6).channel_scores(evidence, channels)
    found = method("taylor", images=6).saliencies(evidence)  # type: ignore[attr-defined]
    sums = found["0.weight"].sum(1) + found["2.weight"].sum(0)
    np.testing.assert_allclose(scores[group.channels], (sums / sums.mean()).numpy())


def test_synaptic_flow_is_conserved() -> None:
    """Tanaka et al. theorem 1: what flows into a hidden unit flows out of it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).eval()
    evidence = Evidence(module, Example((torch.randn(1, 5),)), 0)
    found = method("synflow").saliencies(evidence)  # type: ignore[attr-defined]
    torch.testing.assert_close(found["0.weight"].sum(1), found["2.weight"].sum(0))
    by_hand = module[2].weight.abs().double().sum(0)[:, None] * module[0].weight.abs().double()
    torch.testing.assert_close(found["0.weight"], by_hand.detach())


def test_batch_norm_scales_are_the_scores() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    module[1].weight.data = torch.tensor([0.5, -2.0, 0.1, 3.0, 0.2, 1.0])
    example = Example((torch.zeros(1, 3, 4, 4),))
    channels = trace(module, example)
    group = next(g for g in channels.groups if "1.weight[0]" in channels.member_names(g))
    scores = method("batchnorm").channel_scores(Evidence(module, example, 0), channels)
    np.testing.assert_allclose(scores[group.channels], [0.5, 2.0, 0.1, 3.0, 0.2, 1.0], rtol=1e-6)


def test_the_filter_in_the_middle_goes_first() -> None:
    module = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)).eval()
    module[0].weight.data = torch.tensor([[0.0, 0.1], [4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
    example = Example((torch.zeros(1, 2),))
    channels = trace(module, example)
    group = next(g for g in channels.groups if not g.frozen)
    scores = method("fpgm").channel_scores(Evidence(module, example, 0), channels)
    assert scores[group.channels].argmin() == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_wanda_is_weight_times_input_norm(groups: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups)).double().eval()
    pictures = torch.randn(3, 4, 5, 5).double()
    evidence = Evidence(module, Example((pictures[:1],)), 0, lambda count: iter([(pictures, LABELS[:3])]))
    norms = pictures.square().sum((0, 2, 3)).sqrt()
    found = method("wanda").saliencies(evidence)["0.weight"]  # type: ignore[attr-defined]
    for row in range(6):
        first = row // (6 // groups) * (4 // groups)
        for column in range(4 // groups):
            expected = module[0].weight[row, column].abs() * norms[first + column]
            torch.testing.assert_close(found[row, column], expected.detach())
    scores = method("wanda").weight_scores(evidence, {"0.weight": module[0].weight})["0.weight"]
    assert all(len(set(row.flatten().tolist())) == row.numel() for row in scores)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_of_every_m_weights_n_stay(n: int, m: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path = randomise(build(parse("cifar_resnet20"))), tmp_path / "net.pt"
    torch.save(module.state_dict(), path)
    fields = {"version": 1, "method": {"name": "nm", "n": n, "m": m}, "strip": {"expand": "off"}}
    prunecli.prune(validate(fields), str(path), tmp_path / "out.safetensors")
    weight = prunecli.load(tmp_path / "out.safetensors").layer2[1].conv1.weight.detach()
    parts = weight.movedim(1, -1).reshape(-1, m)
    assert ((parts != 0).sum(1) == n).all()
    kept = module.layer2[1].conv1.weight.detach().abs().movedim(1, -1).reshape(-1, m)
    assert ((parts != 0) == (kept >= kept.sort(1, descending=True).values[:, n - 1 : n])).all()


def test_nonsense_patterns() -> None:
    with pytest.raises(RecipeError, match="n must be less than m"):
        validate({"version": 1, "method": {"name": "nm", "n": 4, "m": 4}})


SCORED = [name for name in method_names() if name not in ("none", "nm") and method_class(name).kind == "score"]


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("structure", ["channel", "weight"])
def test_the_budget_is_met(name: str, structure: str, tmp_path: Path) -> None:
    if structure == "weight" and name in ("batchnorm", "fpgm"):
        pytest.skip("scores channels only")
    torch.manual_seed(0)
    path = tmp_path / "net.pt"
    torch.save(randomise(build(parse("cifar_resnet20"))).state_dict(), path)
    budget = {"flops": 0.5} if structure == "channel" else {"sparsity": 0.8}
    given = {"name": name} | ({} if name in ("batchnorm", "fpgm") else {"structure": structure})
    given |= {"images": 64} if name in WITH_IMAGES else {}
    fields = {"version": 1, "data": "fake:3x8x8", "method": given, "budget": budget}
    takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
    facts = prunecli.prune(validate(fields), str(path), tmp_path / "out.safetensors", takes)
    assert (
        facts.budget.asked * 0.98 <= facts.budget.met <= facts.budget.asked * (1 if structure == "channel" else 1.001)
    )


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_without_data_it_says_so(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(build(parse("cifar_resnet20")).state_dict(), path)
    fields = {"version": 1, "method": {"name": name}, "budget": {"flops": 0.5}}
    with pytest.raises(InputError, match=f"{name} looks at images, but no data is given"):
        prunecli.prune(validate(fields), str(path), tmp_path / "out.safetensors")


def test_a_method_sees_the_same_images_again(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(randomise(build(parse("cifar_resnet20"))).state_dict(), path)
    method = {"name": "taylor", "images": 64}
    fields = {"version": 1, "data": "fake:3x8x8", "method": method, "budget": {"flops": 0.5}}
    for output in ("a", "b"):
        takes = prunecli.Opening.like(torch.zeros(1, 3, 8, 8))
        prunecli.prune(validate(fields), str(path), tmp_path / f"{output}.safetensors", takes)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
