"""Attention with fewer heads: torch's numbers where torch can, and cuts that equal the masked model everywhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunecli.graph.attention import PlainAttention, allow_fewer_heads
from prunecli.graph.channels import Channels, trace
from prunecli.graph.tape import Example
from prunecli.inputs import Argument
from prunecli.model import Opening, open_model
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.fix import head_edits
from prunecli.surgery.forecast import Forecast
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import halves, survey
from prunecli.surgery.trial import trial
from prunecli.surgery.verify import compare

LENGTH, KEYS = 5, 7
DRAWN = torch.Generator().manual_seed(0)  # a row without any key would be not a number, here and there
MASKS = {
    "none": {},
    "bool": {"attn_mask": torch.rand(LENGTH, KEYS, generator=DRAWN) < 0.3},
    "additive": {"attn_mask": torch.randn(LENGTH, KEYS, dtype=torch.float64, generator=DRAWN)},
    "by head": {"attn_mask": torch.rand(2 * 4, LENGTH, KEYS, generator=DRAWN) < 0.3},
    "padding": {"key_padding_mask": torch.tensor([[False] * 6 + [True], [False] * 4 + [True] * 3])},
    "weights by head": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
}


KINDS = {
    "one weight": {},
    "no bias": {"bias": False},
    "own widths": {"kdim": 12, "vdim": 10},
    "a learned key more": {"add_bias_kv": True},
    "a zero key more": {"add_zero_attn": True},
    "all of it": {"kdim": 12, "vdim": 10, "add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_at_full_width_it_is_torchs_attention(mask: str, batch_first: bool, kind: str) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, **KINDS[kind]).double().eval()
    ours = copy.deepcopy(attention)
    ours.__class__ = PlainAttention
    sizes = ((LENGTH, 16), (KEYS, attention.kdim), (KEYS, attention.vdim))
    inputs = [torch.randn(2, *size, dtype=torch.float64) for size in sizes]
    if not batch_first:
        inputs = [t.transpose(0, 1) for t in inputs]
    expected, found = (m(*inputs, **MASKS[mask]) for m in (attention, ours))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_without_a_batch() -> None:
    attention = nn.MultiheadAttention(16, 4).double().eval()
    ours = copy.deepcopy(attention)
    ours.__class__ = PlainAttention
    query, keys = torch.randn(LENGTH, 16).double(), torch.randn(KEYS, 16).double()
    torch.testing.assert_close(ours(query, keys, keys), attention(query, keys, keys))


class Net(nn.Module):
    """Queries, keys and values of widths of their own."""

    def __init__(self, batch_first: bool, **kind: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, **kind)
        self.first = nn.ModuleList(nn.Linear(8, n) for n in (16, self.attention.kdim, self.attention.vdim))
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.attention(*(layer(x) for layer in self.first))[0])


def surveyed(module: nn.Module, batch: int) -> tuple[Channels, Example]:
    torch.manual_seed(0)
    example = Example((torch.randn(batch, 6, 8, dtype=torch.float64),))
    return survey(module, example), example


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_go_as_a_whole(batch_first: bool, batch: int, kind: str) -> None:
    module = Net(batch_first, **KINDS[kind]).double().eval()
    channels, example = surveyed(module, batch)
    removed = halves(channels)
    smaller, journal = cut(module, channels, removed)
    assert (smaller.attention.num_heads, smaller.attention.head_dim) == (2, 4)
    assert [len(weight) for weight in smaller.attention._weights()] == [8] * 3
    assert journal.attributes["attention"] == {"num_heads": 2}
    assert compare(masked(module, channels, removed), smaller, [example], torch.float64).max_rel_error < 1e-12


def test_a_tape_shows_its_products_and_narrower_heads_follow_it() -> None:
    """Before the cut as after it, so that the smaller model does op for op what is on the tape."""
    module = Net(True).double().eval()
    channels, example = surveyed(module, 2)
    assert type(module.attention) is nn.MultiheadAttention
    assert [op.module for op in channels.tape.ops if op.name == "aten.bmm"] == ["attention"] * 2
    found = Forecast(channels, halves(channels))
    assert found.is_plain
    assert found.comes_true(module, example)


def test_only_what_changed_gets_another_class() -> None:
    net = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4)])
    allow_fewer_heads(net.modules())
    assert [type(part) for part in net] == [nn.MultiheadAttention] * 2


class Widths(nn.Module):
    """Queries and keys get narrower; `scale` says what the scores are multiplied by, `by_tensor` the queries."""

    def __init__(self, scale: float | None, by_tensor: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.scale, self.by_tensor = scale, by_tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (2, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        if self.by_tensor:  # as DeBERTa does
            q = q / torch.sqrt(torch.tensor(q.shape[-1], dtype=torch.float) * 3)
        return self.o(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


def live(channels: Channels, slot: str) -> bool:
    group = next(g for g in channels.groups if slot in channels.member_names(g))
    return not group.frozen


def test_a_scale_that_follows_the_width_is_noticed() -> None:
    example = Example((torch.randn(1, 6, 8),))
    follows = "a number follows the width"
    for scale, by_tensor, problem in ((0.5, False, None), (None, False, follows), (0.5, True, follows)):
        module = Widths(scale, by_tensor).eval()
        channels = trace(module, example)
        trouble = trial(module, example, channels, halves(channels))
        assert (trouble is None) == (problem is None)
        assert problem is None or trouble.reason.startswith(problem)


class LiteralWidth(nn.Module):
    """A head width as a number in the code: half the channels would make half the heads of what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(2, 3) * 0.5).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).flatten(2))


def test_other_heads_of_what_is_left_are_noticed() -> None:
    module, example = LiteralWidth().eval(), Example((torch.randn(1, 6, 8),))
    channels = trace(module, example)
    trouble = trial(module, example, channels, halves(channels))
    assert trouble is not None
    assert trouble.reason.startswith("a dim changes its size otherwise than its channels")
    whole = survey(module, example)
    removed = halves(whole)
    smaller, _ = cut(module, whole, removed)
    assert smaller.q.out_features == 4  # one of two heads
    assert compare(masked(module, whole, removed), smaller, [example], torch.float64).max_rel_error < 1e-12


class Forecaster(nn.Module):
    """Series whose embedding is padded in a circle, as in Informer: blank positions, a batch included, are written."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(3, 16, 3, padding=1, padding_mode="circular")
        self.places = nn.Parameter(torch.randn(1, 6, 16))
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.n_heads, self.last = 4, nn.Linear(16, 2)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        x = self.embed(series).transpose(1, 2) + self.places
        n, length, _ = x.shape
        q, k, v = (layer(x).view(n, length, self.n_heads, -1) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("blhe,bshe->bhls", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("bhls,bshd->blhd", scores.softmax(-1), v)
        return self.last(x + self.o(mixed.reshape(n, length, -1)))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_that_was_written_into_blanks_is_nobodys_channel(batch: int) -> None:
    module, example = Forecaster().double().eval(), Example((torch.randn(batch, 3, 6).double(),))
    channels = survey(module, example)
    removed = halves(channels)
    smaller, _ = cut(module, channels, removed)
    assert smaller.n_heads == 2
    assert smaller.q.out_features == smaller.v.out_features == 8
    assert compare(masked(module, channels, removed), smaller, [example], torch.float64).max_rel_error < 1e-12


def test_attributes_change_only_where_they_hold_the_old_size() -> None:
    module = nn.Module()
    module.num_heads, module.head_dim, module.all_head_size, module.hidden_size = 4, 8, 32, 64
    module.n_heads = True
    assert head_edits(module, (4, 8), (3, 8)) == {"num_heads": 3, "all_head_size": 24}
    assert head_edits(module, (4, 8), (4, 6)) == {"head_dim": 6, "all_head_size": 24}


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_are_unwrapped(wrap: object, tmp_path: Path) -> None:
    path = tmp_path / "wrapped.pt"
    torch.save(wrap(nn.Sequential(nn.Linear(4, 3))), path)  # type: ignore[operator]
    model = open_model(str(path), Opening(trust=True, inputs=(Argument((1, 4)),)))
    assert type(model.module) is nn.Sequential


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, 8, 3), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, image: torch.Tensor, *, code: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.last((self.left(image).mean((2, 3)) * self.right(code)).relu())}


def test_several_inputs_by_place_and_by_name() -> None:
    module = TwoInputs().double().eval()
    example = Example((torch.randn(2, 3, 6, 6).double(),), {"code": torch.randn(2, 5).double()})
    channels = survey(module, example)
    removed = halves(channels)
    smaller, _ = cut(module, channels, removed)
    assert smaller.left.out_channels == smaller.right.out_features == 4
    assert compare(masked(module, channels, removed), smaller, [example], torch.float64).max_rel_error < 1e-12


class Thirds(nn.Module):
    """Queries, keys and values are thirds of one layer; each third is cut into heads."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.heads = nn.Linear(16, 96), nn.Linear(32, 16), 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.into(x).chunk(3, dim=-1))
        mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


SEQUENCE = Example((torch.zeros(2, 5, 16),))


@pytest.mark.parametrize("seed", range(5))
def test_thirds_of_heads_keep_as_many_as_the_widest_head(seed: int) -> None:
    channels = survey(Thirds().eval(), SEQUENCE)
    (heads,) = channels.blocks
    random = np.random.default_rng(seed)
    removed = (random.random(channels.count) < 0.6) & ~channels.frozen
    widest = int((~removed[heads]).sum(axis=1).max())
    left = ~repair(channels, removed, random.permutation(channels.count))
    assert (left[heads].sum(axis=1) == widest).all()
