"""Inputs that show more than zeros: any row of a table, and nothing else that is whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import prunecli
from prunecli.graph.examples import drawn, picking
from prunecli.graph.tape import Example
from prunecli.recipe.load import validate


class Text(nn.Module):
    """Tokens in two tables, places, lengths, and a temperature that is a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.hashed, self.places = nn.Embedding(50, 8), nn.EmbeddingBag(30, 8), nn.Embedding(7, 8)

    def forward(self, tokens: Tensor, places: Tensor, lengths: Tensor, heat: Tensor) -> Tensor:
        seen = (torch.arange(tokens.shape[1]) < lengths[:, None]) & tokens.ne(0)
        x = self.tokens(tokens.clone()) + self.places(places)[None]
        return (x * seen[..., None]).sum(1) / heat + self.hashed(tokens)


def zeros() -> Example:
    return Example((torch.zeros(1, 6).long(), torch.zeros(6).int(), torch.full((1,), 4), torch.ones(()).long()))


def test_only_what_picks_rows_is_drawn_and_from_the_smallest_table() -> None:
    tokens, places, lengths, heat = picking(Text(), zeros()).args
    assert len(tokens.unique()) > 1
    assert int(tokens.max()) < 30
    assert len(places.unique()) > 1
    assert int(places.max()) < 7
    assert places.dtype is torch.int32
    assert (lengths.item(), heat.item()) == (4, 1)


def test_it_depends_on_the_seed_alone() -> None:
    first, again, other = (drawn(Text(), zeros(), seed).args[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first) == 2
    assert not torch.equal(first[0], first[1])


def test_an_input_that_the_model_does_not_take_stays_as_it_is() -> None:
    example = Example((torch.zeros(1, 6).long(),))
    assert picking(Text(), example) is example


class Routed(nn.Module):
    """Each token goes to one of four experts, by what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.gate, self.out = nn.Embedding(40, 16), nn.Linear(16, 4), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens).flatten(0, 1)
        best, y = self.gate(x).argmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = torch.where(best == number)[0]
            if len(mine):
                y = y.index_copy(0, mine, expert(x[mine]))
        return self.out(y)


def test_experts_that_token_zero_does_not_meet_are_cut_as_well(tmp_path: object) -> None:
    torch.manual_seed(0)
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {"params": 0.6}})
    path = f"{tmp_path}/small.safetensors"
    prunecli.prune(recipe, Routed(), path, prunecli.Opening.like(torch.zeros(1, 9).long()))
    smaller = prunecli.load(path, into=Routed())
    assert all(len(expert.weight) < 16 for expert in smaller.experts)
    assert smaller(torch.arange(40)[None]).isfinite().all()
