"""Which weights a cut has left: shares by layer, and how far two models of one architecture agree."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prunecli.checkpoint.journal import factors_of
from prunecli.checkpoint.write import atomic
from prunecli.errors import InputError
from prunecli.model import Model

_BITS = 16  # of a position along one dim


@dataclass(frozen=True)
class Overlap:
    """Intersection over union of the weights that two models keep.

    Attributes:
        found: over all layers.
        expected: of random masks that keep as many weights of each layer.
        layers: by the name of the weight.
    """

    found: float
    expected: float
    layers: dict[str, float]


def overlap(first: Model, second: Model, whole: Model) -> Overlap:
    """Compare weights with two or more dims, cut ones included: a weight that is gone is a zero.

    Weights that are factors in one of the models are left out.

    Args:
        first, second: perhaps cut.
        whole: the model both come from.
    """
    ours, theirs = kept(first), kept(second)
    sizes = {name: p.numel() for name, p in whole.module.named_parameters() if p.ndim > 1}
    both, either, chance, layers = 0, 0, 0.0, {}
    for name in (name for name in sizes if name in ours and name in theirs):
        positions = ours[name]
        shared = len(np.intersect1d(positions, theirs[name], assume_unique=True))
        union = len(positions) + len(theirs[name]) - shared
        layers[name] = shared / union if union else 1.0
        both, either = both + shared, either + union
        chance += len(positions) * len(theirs[name]) / sizes[name]
    total = both + either
    return Overlap(both / max(1, either), chance / max(1.0, total - chance), layers)


def insist_on_one_network(model: Model, whole: Model) -> None:
    """See to it that the zeros of a model, perhaps cut, can be compared with those of another one.

    Raises:
        InputError: its weights have other names or shapes, or are all factors.
    """
    shapes = {name: p.shape for name, p in whole.module.named_parameters()}
    factors = {name for weight in model.journal.ranks for name in factors_of(weight)}
    compared = {n: p.shape for n, p in model.module.named_parameters() if p.ndim > 1 and n not in factors}
    cut = model.journal.kept.keys() | whole.journal.kept.keys()

    def fits(name: str, shape: torch.Size) -> bool:
        known = shapes.get(name, torch.Size())
        sizes = enumerate(zip(shape, known, strict=False))
        return len(shape) == len(known) and all(a == b for dim, (a, b) in sizes if (name, dim) not in cut)

    if not all(fits(name, shape) for name, shape in compared.items()):
        raise InputError(f"{model.source} is another network than {whole.source}: their zeros cannot be compared")
    if not compared:
        raise InputError(f"{model.source} has factors in place of weights: there are no zeros to compare")


def kept(model: Model) -> dict[str, NDArray[np.uint64]]:
    """The weights that are not zero, as positions in the tensors before any cut."""
    found = {}
    for name, parameter in model.module.named_parameters():
        if parameter.ndim < 2:
            continue
        position = np.zeros(int((parameter != 0).sum()), dtype=np.uint64)
        for dim, places in enumerate((parameter.detach() != 0).numpy().nonzero()):
            before = np.asarray(model.journal.kept.get((name, dim), range(parameter.shape[dim])))
            position = (position << np.uint64(_BITS)) | before[places].astype(np.uint64)
        found[name] = position
    return found


def shares_left(model: Model, whole: Model) -> dict[str, float]:
    """The share of each weight with two or more dims that is neither zero nor gone."""
    sizes = {model.journal.name_of(n): p.numel() for n, p in whole.module.named_parameters() if p.ndim > 1}
    left = {n: int(torch.count_nonzero(p)) for n, p in model.module.named_parameters() if p.ndim > 1}
    for weight in model.journal.ranks:  # both factors stand for the weight
        narrow, wide = factors_of(weight)
        left[wide] += left.pop(narrow, 0)
    return {name: count / sizes[name] for name, count in left.items() if sizes.get(name)}


def write_layers(path: Path, layers: Mapping[str, Mapping[str, float]]) -> None:
    """A CSV with the columns layer, keep and whatever else is known; `budget.per_layer` reads it.

    Raises:
        OutputError: the place cannot be written.
    """
    columns = ["keep", *sorted({name for facts in layers.values() for name in facts} - {"keep"})]
    rows = [["layer", *columns]]
    for name, facts in layers.items():
        rows.append([name.removesuffix(".weight"), *(f"{facts[c]:.6g}" if c in facts else "" for c in columns)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic(path) as stream:
        stream.write(text.getvalue().encode())
