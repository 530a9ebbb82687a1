"""Random networks on sequences: recurrent layers, attention by hand and by torch, gates, masks, memories."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, STEPS = 8, 6


class Block(nn.Module):
    """(N, T, WIDTH) -> (N, T, WIDTH) by a function of its parts."""

    def __init__(self, run: Callable[[Block, Tensor], Tensor], **parts: nn.Module | nn.Parameter | int) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def linear(inputs: int = 1, outputs: int = 1) -> nn.Linear:
    return nn.Linear(inputs * WIDTH, outputs * WIDTH)


def _attend(block: Block, x: Tensor) -> Tensor:
    """The scale follows the width of a head; the mask is made without a device."""
    q, k, v = (p(x).unflatten(-1, (block.heads, -1)).transpose(1, 2) for p in (block.q, block.k, block.v))
    steps = x.shape[1]
    later = torch.ones(steps, steps).triu(1).bool()
    mask = torch.zeros(steps, steps, dtype=x.dtype).masked_fill(later, -1e9)
    mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v
    return block.o(mixed.transpose(1, 2).flatten(2))


def _written(block: Block, x: Tensor) -> Tensor:
    wide = x.new_zeros(*x.shape[:2], 2 * WIDTH)
    wide[..., :WIDTH] = x
    wide[..., WIDTH:] = x.relu()
    return block.a(wide)


def _cells(block: Block, x: Tensor) -> Tensor:
    state, found = x.new_zeros(len(x), block.cell.hidden_size), []
    for step in x.unbind(1):
        state = block.cell(step, state)
        found.append(state)
    return torch.stack(found, 1)


def _long_cells(block: Block, x: Tensor) -> Tensor:
    size, found = (len(x), block.cell.hidden_size), []
    state = torch.zeros(size, dtype=x.dtype), torch.zeros(size, dtype=x.dtype)
    for step in x.unbind(1):
        state = block.cell(step, state)
        found.append(state[0])
    return torch.stack(found, 1)


def _thirds(block: Block, x: Tensor) -> Tensor:
    a, b, c = block.a(x).chunk(3, -1)
    return block.b(a * b.sigmoid() + c)


def _halves(block: Block, x: Tensor) -> Tensor:
    a, b = block.a(x).chunk(2, -1)
    return block.b(a.relu()) + block.c(b.tanh())


BLOCKS: dict[str, Callable[[int], Block]] = {
    "lstm": lambda n: Block(lambda b, x: b.rnn(x)[0], rnn=nn.LSTM(WIDTH, WIDTH, n, batch_first=True)),
    "gru both ways": lambda _: Block(
        lambda b, x: b.rnn(x)[0], rnn=nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
    ),
    "rnn": lambda _: Block(lambda b, x: x + b.rnn(x)[0], rnn=nn.RNN(WIDTH, WIDTH, batch_first=True)),
    "cells": lambda _: Block(_cells, cell=nn.GRUCell(WIDTH, WIDTH)),
    "long cells": lambda _: Block(_long_cells, cell=nn.LSTMCell(WIDTH, WIDTH)),
    "attention": lambda n: Block(
        lambda b, x: b.mha(x, x, x, need_weights=False)[0], mha=nn.MultiheadAttention(WIDTH, n, batch_first=True)
    ),
    "own attention": lambda n: Block(_attend, q=linear(), k=linear(), v=linear(), o=linear(), heads=n),
    "memory": lambda _: Block(
        lambda b, x: x + (b.a(x) @ b.m.T).softmax(-1) @ b.m, a=linear(), m=nn.Parameter(torch.randn(4, WIDTH))
    ),
    "glu": lambda _: Block(lambda b, x: b.b(F.glu(b.a(x), -1)), a=linear(1, 4), b=linear(2)),
    "thirds": lambda _: Block(_thirds, a=linear(1, 3), b=linear()),
    "halves": lambda _: Block(_halves, a=linear(1, 2), b=linear(), c=linear()),
    "mlp": lambda _: Block(lambda b, x: x + b.b(F.gelu(b.a(x))), a=linear(1, 2), b=linear(2)),
    "bilinear": lambda _: Block(lambda b, x: b.a(x) * b.b(x), a=linear(), b=linear()),
    "twice": lambda _: Block(lambda b, x: b.a(b.a(x).relu()), a=linear()),
    "conv": lambda n: Block(
        lambda b, x: b.norm(b.conv(x.transpose(1, 2))).relu().transpose(1, 2),
        conv=nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups={1: 1, 2: 2, 4: WIDTH}[n]),
        norm=nn.BatchNorm1d(WIDTH),
    ),
    "norm": lambda _: Block(lambda b, x: b.norm(x), norm=nn.LayerNorm(WIDTH)),
    "prelu": lambda _: Block(lambda b, x: b.act(x.transpose(1, 2)).transpose(1, 2), act=nn.PReLU(WIDTH)),
    "scale": lambda _: Block(lambda b, x: x * b.s, s=nn.Parameter(torch.randn(WIDTH))),
    "places": lambda _: Block(
        lambda b, x: x + b.e(torch.arange(x.shape[1], device=x.device)), e=nn.Embedding(STEPS, WIDTH)
    ),
    "class token": lambda _: Block(
        lambda b, x: torch.cat([b.t.expand(len(x), -1, -1), x], 1)[:, : x.shape[1]],
        t=nn.Parameter(torch.randn(1, 1, WIDTH)),
    ),
    "einsum": lambda _: Block(
        lambda b, x: torch.einsum("ntc,cd->ntd", x, b.w), w=nn.Parameter(torch.randn(WIDTH, WIDTH) / 3)
    ),
    "low rank": lambda _: Block(
        lambda b, x: x @ b.u @ b.v, u=nn.Parameter(torch.randn(WIDTH, 3)), v=nn.Parameter(torch.randn(3, WIDTH) / 3)
    ),
    "zeros beside": lambda _: Block(lambda b, x: b.a(torch.cat([x, torch.zeros_like(x)], -1)), a=linear(2)),
    "written": lambda _: Block(_written, a=linear(2)),
    "sums": lambda _: Block(lambda b, x: b.a(x).cumsum(1) / x.shape[1], a=linear()),
    "rolled": lambda _: Block(lambda b, x: torch.roll(b.a(x), 1, 1), a=linear()),
    "largest": lambda _: Block(lambda b, x: b.a(x) + x.amax(1, keepdim=True), a=linear()),
    "above zero": lambda _: Block(lambda b, x: torch.maximum(b.a(x), x.new_zeros(x.shape[-1])), a=linear()),
}


class Sequences(nn.Module):
    """(N, STEPS, 5) -> (N, 3): a row of blocks, some beside a shortcut."""

    def __init__(self, names: list[str], heads: int, shortcuts: bool, rectified: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList([BLOCKS[name](heads) for name in names])
        self.shortcuts, self.rectified = shortcuts, rectified

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() if self.rectified else self.first(x)
        for number, block in enumerate(self.blocks):
            x = x + block(x) if self.shortcuts and number % 2 else block(x)
        return self.last(x.mean(1))
