"""Inputs that show more of a model than zeros do, and what it gives for them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunecli.graph.rules.layout import LAYOUT
from prunecli.graph.rules.pattern import PATTERNS
from prunecli.graph.tape import Example, ForwardError, Op, Ref, Tape, output_tensors, record

_LOOKUPS = {name for name, (_, text) in PATTERNS.items() if text.startswith("v e ")}  # a vocabulary of embeddings
_CARRIES = LAYOUT | {"aten." + name for name in ("clone", "alias", "detach", "_to_copy", "cat", "stack")}
_COMPARES = {"aten." + name for name in ("eq", "ne", "lt", "le", "gt", "ge", "ones_like", "zeros_like")}


def random_example(example: Example, seed: int, batch: int = 2) -> Example:
    """Standard normal values in the shapes of `example`, with a batch of that size; integers are repeated."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        shape = (batch, *tensor.shape[1:]) if tensor.ndim and tensor.shape[0] == 1 else tensor.shape
        if not tensor.is_floating_point():
            return tensor.expand(shape).clone()
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    return example.map(draw)


@contextlib.contextmanager
def same_draws(seed: int = 0) -> Iterator[None]:
    """What a forward pass draws depends on the seed alone; the random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def outputs(module: nn.Module, example: Example, seed: int = 0) -> list[Tensor]:
    """The tensors among a model's outputs; `seed` is that of what it draws, as autoencoders draw their latent."""
    with torch.no_grad(), same_draws(seed):
        return output_tensors(module(*example.args, **example.kwargs))


def picking(module: nn.Module, example: Example, seed: int = 0) -> Example:
    """The same example, but integers that do nothing except pick rows of embeddings pick them at random.

    Tokens that are all alike would prove little, and would send all of them to the same experts.
    """
    if not any(_is_index(leaf) for leaf in example.tensors()):
        return example
    try:
        rows = _picked_rows(record(module, example))
    except ForwardError:  # told where the model is used
        return example
    generator, numbers = torch.Generator().manual_seed(seed), itertools.count()

    def pick(tensor: Tensor) -> Tensor:
        count = rows.get(next(numbers), 0)
        return torch.randint(count, tensor.shape, generator=generator, dtype=tensor.dtype) if count else tensor

    picked = example.map(pick)
    return picked if rows and takes(module, picked) else example


def drawn(module: nn.Module, example: Example, seed: int) -> Example:
    """Random numbers and indices in a batch of two, or in that of `example` where the model takes no other."""
    doubled = random_example(example, seed)
    return picking(module, doubled if takes(module, doubled) else random_example(example, seed, batch=1), seed)


def takes(module: nn.Module, example: Example) -> bool:
    """Whether the model runs on an input: its Python may fix the batch size."""
    try:
        record(module, example)
    except ForwardError:
        return False
    return True


def _is_index(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype is not torch.bool


def _picked_rows(tape: Tape) -> dict[int, int]:
    """{number of an input: rows of its smallest table} for inputs that only pick rows, or are compared."""
    readers = tape.readers()
    rows = ((number, _tables(tape, readers, index)) for number, index in enumerate(tape.inputs))
    return {number: min(sizes) for number, sizes in rows if sizes}


def _tables(tape: Tape, readers: dict[int, list[Op]], index: int) -> list[int]:
    """How many rows the tables have that a value picks from; empty where it does anything else."""
    found, waiting = [], [index]
    while waiting:
        value = waiting.pop()
        for op in readers.get(value, ()):
            if op.name in _LOOKUPS and op.args[1] == Ref(value):
                found.append(tape.shapes[op.refs[0].index][0])
            elif op.name in _CARRIES:
                waiting += op.outputs
            elif op.name not in _COMPARES:
                return []
    return found
