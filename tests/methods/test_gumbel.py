"""Gumbel-Softmax masks: the law of the samples, the gradient, frozen weights, exact folding and budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from courses import course
from interruptions import continued
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils import parametrize
from zoo.user_models import MODELS

import prunecli
from prunecli.errors import InputError
from prunecli.methods.gumbel import GumbelMasks
from prunecli.methods.gumbel_masks import ChannelMasks, WeightMasks
from prunecli.methods.masks import Mask, Sampled, sample
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Budget, Train
from prunecli.train.data import open_data
from prunecli.train.loop import Trainer

DRAWS = 200_000


@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
def test_samples_are_kept_with_the_chance_of_the_logit_at_every_temperature(logit: float, tau: float) -> None:
    torch.manual_seed(0)
    found = sample(torch.full((DRAWS,), logit), tau)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    chance = float(torch.tensor(logit).sigmoid())
    assert float(found.mean()) == pytest.approx(chance, abs=5 * (chance * (1 - chance) / DRAWS) ** 0.5)


SLOPES = {
    (-2.0, 1.0): 0.11335, (0.0, 1.0): 1 / 6, (1.5, 1.0): 0.13367,
    (-2.0, 0.5): 0.11373, (0.0, 0.5): 0.21457, (1.5, 0.5): 0.14851,
}  # fmt: skip


@pytest.mark.parametrize(("logit", "tau"), SLOPES)
def test_the_mean_slope_of_the_straight_through_gradient(logit: float, tau: float) -> None:
    torch.manual_seed(0)
    logits = torch.full((DRAWS,), logit, dtype=torch.float64, requires_grad=True)
    sample(logits, tau).sum().backward()
    assert float(logits.grad.mean()) == pytest.approx(SLOPES[logit, tau], rel=0.01)


def test_the_gradient_is_that_of_the_soft_mask() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    soft = torch.sigmoid(x / 0.7)
    (expected,) = torch.autograd.grad(soft.sum(), x)
    (found,) = torch.autograd.grad(Sampled.apply(x, 0.7).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 20.0])
def test_one_logit_is_the_difference_of_two(shift: float) -> None:
    """Two classes with logits (a + k, k) and Gumbel noise of their own: the same sample and slope for every k."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.linspace(-3, 3, 500, dtype=torch.float64, requires_grad=True)
    gumbels = -torch.rand(2, 500, dtype=torch.float64, generator=generator).log().neg().log()
    pair = torch.stack([logits + shift, torch.full_like(logits, shift)]) + gumbels
    one = Sampled.apply(logits + gumbels[0] - gumbels[1], 0.7)
    assert torch.equal(one, 1.0 - pair.argmax(0))
    (expected,) = torch.autograd.grad(torch.softmax(pair / 0.7, 0)[0].sum(), logits)
    (found,) = torch.autograd.grad(one.sum(), logits)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_signed_constants_have_one_size_in_every_layer() -> None:
    module, before = net(), net()
    hook = WeightMasks(GumbelMasks(name="gumbel", init="zero", signed_constant=True), NAMES, None)
    hook.attach(module, course(10))
    for name in NAMES:
        owner, _, attribute = name.rpartition(".")
        constant, old = module.get_submodule(owner).parametrizations[attribute].original, before.get_parameter(name)
        assert torch.equal(constant.sign(), old.sign())
        torch.testing.assert_close(constant.abs(), old.std().expand_as(old))
    with pytest.raises(ValidationError, match="no ranks"):
        GumbelMasks(name="gumbel", signed_constant=True)


def test_large_logits_decide() -> None:
    mask = Mask(torch.tensor([40.0, -40.0]), 1.0)
    for _ in range(50):
        mask.draw()
        assert mask().tolist() == [1, 0]


def test_one_sample_for_a_forward_pass_and_none_in_eval() -> None:
    mask = Mask(torch.zeros(100), 1.0)
    first = mask()
    assert torch.equal(mask(), first)
    mask.draw()
    assert not torch.equal(mask(), first)
    assert mask.eval()().tolist() == [1] * 100  # a logit of 0 is kept


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10),
    ).eval()  # fmt: skip


NAMES = ["0.weight", "3.weight", "7.weight"]
METHOD = GumbelMasks(name="gumbel", init="zero")


def hooks() -> list[tuple[str, object]]:
    return [
        ("weight", WeightMasks(METHOD, NAMES, 0.8)),
        ("channel", ChannelMasks(METHOD, Budget(flops=0.5))),
        ("open", WeightMasks(METHOD, NAMES, None)),
    ]


@pytest.mark.parametrize(("name", "hook"), hooks())
def test_what_is_left_is_the_old_weight_times_the_factor_of_its_layer(name: str, hook: object) -> None:
    data, settings = open_data("digits", (1, 8, 8), 10), Train(epochs=1, batch_size=256)
    before = net()
    found = Trainer(data, settings, hooks=[hook]).fit(before).module  # type: ignore[list-item]
    assert not parametrize.is_parametrized(found)
    for key, old in before.named_parameters():
        new = found.get_parameter(key)
        assert new.requires_grad
        if key not in NAMES:
            assert torch.equal(old, new), key
            continue
        kept = new != 0
        factors = (new / old)[kept]
        torch.testing.assert_close(factors, factors[:1].expand_as(factors), msg=f"{name} {key}")
    if name == "weight":
        zeros = [int((found.get_parameter(n) == 0).sum()) for n in NAMES]
        total = sum(found.get_parameter(n).numel() for n in NAMES)
        assert sum(zeros) == -(-total * 8 // 10)


def test_a_large_pull_moves_the_logits_not_the_weights() -> None:
    """One weight, by hand: dL/da = r w dL/dw q (1 - q) / tau for the noise that was drawn."""
    module = nn.Linear(1, 1, bias=False).double()
    hook = WeightMasks(METHOD, ["weight"], None)
    hook.attach(module, course(10))
    module.train()
    torch.manual_seed(3)
    noise = torch.rand(1, 1, dtype=torch.float64).logit()
    torch.manual_seed(3)
    loss = (module(torch.ones(1, 1, dtype=torch.float64)) - 2).square().sum()
    loss.backward()
    q = torch.sigmoid(noise)
    layer = module.parametrizations.weight[0]
    weight = module.parametrizations.weight.original.detach()
    upstream = 2 * (weight * (noise > 0) - 2)
    torch.testing.assert_close(layer.mask.logits.grad, upstream * weight * q * (1 - q))
    torch.testing.assert_close(layer.rescale.grad, (upstream * weight * (noise > 0)).sum())
    assert module.parametrizations.weight.original.grad is None


def test_the_expected_sparsity_follows_the_ramp() -> None:
    module = net()
    hook = WeightMasks(GumbelMasks(name="gumbel", ramp=0.5), NAMES, 0.9)
    hook.attach(module, course(100))
    for step, expected in ((20, 0.9 * (1 - 0.6**3)), (50, 0.9), (90, 0.9)):
        hook.after_step(module, step)
        assert hook.figures()["sparsity"] == pytest.approx(expected, abs=1e-6)
        masks = [float(m.chances().sum()) for m in hook.masks()]
        assert 1 - sum(masks) / sum(m.logits.numel() for m in hook.masks()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "hook"), hooks()[:2])
def test_resumed_and_uninterrupted_runs_agree_bit_for_bit(name: str, hook: object, tmp_path: Path) -> None:
    del hook
    data, settings = open_data("digits", (1, 8, 8), 10), Train(epochs=2, batch_size=256, save_seconds=0)

    def run(**options: object) -> dict[str, Tensor]:
        hook = dict(hooks())[name]
        return Trainer(data, settings, hooks=[hook], **options).fit(net()).module.state_dict()  # type: ignore[arg-type, list-item]

    resumed = continued(run, tmp_path, 6)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in run().items())


class Odd(nn.Module):
    """A residual, a depthwise and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.deep = nn.Conv2d(12, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.outer, self.up = nn.Conv2d(16, 12, 1), nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.deep(self.inner(x).relu()).relu())
        found: Tensor = self.fc(self.up(x).relu().mean((2, 3)))
        return found


def test_channels_of_every_kind_of_layer_can_be_masked(tmp_path: Path) -> None:
    facts = prune_odd(tmp_path, {"name": "gumbel", "structure": "channel"})
    assert 0.6 <= facts.budget.met <= 0.7
    assert facts.verified.max_rel_error < 1e-12
    assert {cut.group for cut in facts.cuts} & {"inner", "stem"}


class Square(nn.Module):
    """One weight whose rows and columns are the same channels, another that reads along both of its dims."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.both = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        x = x + self.square(x).relu()
        return self.last((x @ self.both).relu() @ self.both.T)


def test_a_square_weight_is_masked_where_it_reads() -> None:
    torch.manual_seed(0)
    hook = ChannelMasks(METHOD, Budget(params=0.6))
    module = Square()
    hook.attach(module, course(10))
    assert len(module.square.parametrizations.weight) == 1
    assert len(module.parametrizations.both) == 2
    module(torch.zeros(2, 1, 8, 8))
    hook.finalize(module)
    assert not parametrize.is_parametrized(module)


def test_a_batch_norm_before_a_stream_that_others_write_takes_no_channel_along(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no channel goes with its batch norms"):
        prune_odd(tmp_path, {"name": "str", "structure": "channel"})


def prune_odd(folder: Path, method: dict[str, str]) -> object:
    path = folder / "odd.py"
    path.write_text("from methods.test_gumbel import Odd\ndef build(): return Odd()\n")
    torch.manual_seed(0)
    torch.save(Odd().state_dict(), folder / "odd.pt")
    fields = {
        "version": 1, "data": "digits", "arch": f"{path}:build", "input": "1x1x8x8", "method": method,
        "budget": {"flops": 0.7}, "train": {"epochs": 1, "batch_size": 64},
    }  # fmt: skip
    return prunecli.prune(validate(fields), str(folder / "odd.pt"), folder / "out.safetensors")


DIGITS = str(Path(__file__).parents[2] / "recipes" / "digits.safetensors")


def prune(output: Path, **fields: object) -> object:
    given = {"version": 1, "data": "digits", "train": {"epochs": 8, "batch_size": 64}}
    return prunecli.prune(validate(given | fields), DIGITS, output)  # type: ignore[arg-type]


def test_a_real_training_meets_the_sparsity(tmp_path: Path) -> None:
    facts = prune(tmp_path / "o.safetensors", method={"name": "gumbel"}, budget={"sparsity": 0.8})
    assert 0.8 <= facts.budget.met <= 0.805
    assert facts.after.accuracy > 0.9
    assert facts.verified.max_rel_error < 1e-12


def test_masked_channels_go_and_the_flops_are_met(tmp_path: Path) -> None:
    method = {"name": "gumbel", "structure": "channel"}
    facts = prune(tmp_path / "o.safetensors", method=method, budget={"flops": 0.5})
    assert 0.47 <= facts.budget.met <= 0.5
    assert facts.after.flops / facts.before.flops == pytest.approx(facts.budget.met, abs=0.005)
    assert facts.removed_channels > 0
    assert facts.after.accuracy > 0.8
    assert facts.verified.max_rel_error < 1e-12


def with_fewer_channels(network: str, output: Path, share: float, **train: float) -> object:
    """A network of the user zoo, of which so many FLOPs may stay."""
    fields = {"version": 1, "data": "fake:3x8x8", "train": {"epochs": 1, **train}, "budget": {"flops": share}}
    recipe = validate({**fields, "method": {"name": "gumbel", "structure": "channel"}})
    return prunecli.prune(recipe, MODELS[network](), output, prunecli.Opening.like(torch.zeros(1, 3, 8, 8)))


def test_widths_that_no_training_can_promise_are_whole_from_the_start(tmp_path: Path) -> None:
    """Heads are half of the stream, so that only even widths run: what training leaves may be odd."""
    with pytest.raises(InputError, match="cannot be met: the least possible is 9"):
        with_fewer_channels("BiasByIndex", tmp_path / "o.safetensors", 0.7)
    assert not list(tmp_path.iterdir())


def test_counts_that_must_agree_are_not_left_to_training(tmp_path: Path) -> None:
    """As many values are written as another tensor has channels."""
    with pytest.raises(InputError, match="no prunable channel"):
        with_fewer_channels("WrittenRow", tmp_path / "o.safetensors", 0.7)


@pytest.mark.parametrize("network", ["GroupedStream", "Cells"])
def test_what_was_chosen_goes(network: str, tmp_path: Path) -> None:
    """Also to widths that kernels are slow at, and where one width becomes by chance what another one was."""
    torch.manual_seed(0)
    facts = with_fewer_channels(network, tmp_path / "o.safetensors", 0.75, lr=0.01)
    assert facts.after.flops / facts.before.flops == pytest.approx(facts.found["flops"], abs=1e-9)
    assert 0.7 < facts.found["flops"] <= 0.75
