"""How much of a budget each layer gets.

A layer of n units and ratio r keeps its unit of rank k (1 for the best) as long as ``k - 1/2 <= e * r * n``, for
one number e that the budget search finds. With the score ``r * n / (k - 1/2)`` any search that follows one order
of all units does so by itself, clipping included; where the ratios are the shares themselves, e is 1.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from prunecli.arrays import Floats
from prunecli.checkpoint.read import read
from prunecli.errors import InputError

Layers = Mapping[str, Mapping[str, tuple[int, ...]]]
Ratios = Callable[[Sequence[tuple[int, ...]]], float]


def uniform(shapes: Sequence[tuple[int, ...]]) -> float:
    """The same share of every layer."""
    del shapes
    return 1.0


def erk(shapes: Sequence[tuple[int, ...]]) -> float:
    """Erdos-Renyi-kernel: ``(sum of the weight's dims) / (their product)`` (Evci et al. 2020, arXiv 1911.11134)."""
    return float(np.mean([sum(shape) / math.prod(shape) for shape in shapes])) if shapes else 1.0


RATIOS: dict[str, Ratios] = {"uniform": uniform, "erk": erk}


def by_ratio(scores: Floats, ratio: float) -> Floats:
    """Scores of one layer, rewritten so that the layer keeps its ratio; ties are broken by position."""
    rank = np.empty(len(scores))
    rank[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ratio * len(scores) / (rank - 0.5)


def lamp(scores: Floats) -> Floats:
    """``s^2 / sum of all s'^2 >= s^2`` within the layer (Lee et al. 2021, arXiv 2010.07611, equation 5)."""
    order = np.argsort(scores, kind="stable")
    squares = scores[order] ** 2
    rest = np.cumsum(squares[::-1])[::-1]
    found = np.empty(len(scores))
    found[order] = np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)
    return found


def allocate(rule: str, scores: Mapping[str, Floats], layers: Layers) -> dict[str, Floats]:
    """Scores that share a budget among layers as `rule` says.

    Args:
        rule: ``global`` (as they are), ``uniform``, ``erk``, ``lamp``, or a file: a CSV with the columns
            ``layer,keep``, or an earlier result.
        scores: of the units of each place: a channel group, or a weight.
        layers: {place: {layer it writes: shape of that layer's weight}}.

    Raises:
        InputError: the file cannot be used.
    """
    if rule == "global":
        return dict(scores)
    if rule == "lamp":
        return {place: lamp(own) for place, own in scores.items()}
    if rule in RATIOS:
        return {place: by_ratio(own, RATIOS[rule](list(layers[place].values()))) for place, own in scores.items()}
    keep = kept_shares(Path(rule), {name: shape for shapes in layers.values() for name, shape in shapes.items()})
    shares = _by_place(keep, {place: len(own) for place, own in scores.items()}, layers)
    return {
        place: by_ratio(own, shares[place]) if place in shares else np.full(len(own), np.inf)
        for place, own in scores.items()
    }


def _by_place(keep: Mapping[str, float], sizes: Mapping[str, int], layers: Layers) -> dict[str, float]:
    """The share of each place, so that the layers they write keep theirs; several places may fill one layer.

    Least squares over all layers within [0, 1]; what they leave open stays near the mean of the layers' shares.
    """
    from scipy.optimize import lsq_linear  # a quarter of a second

    places = [place for place in sizes if any(layer in keep for layer in layers[place])]
    if not places:
        return {}
    guess = np.array([np.mean([keep[layer] for layer in layers[place] if layer in keep]) for place in places])
    rows = [[sizes[place] * (layer in layers[place]) for place in places] for layer in keep]
    wanted = [share * sum(row) for share, row in zip(keep.values(), rows, strict=True)]
    ridge = 1e-4 * np.eye(len(places))
    found = lsq_linear(np.vstack([rows, ridge]), np.concatenate([wanted, 1e-4 * guess]), bounds=(0, 1)).x
    return dict(zip(places, found.tolist(), strict=True))


def kept_shares(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """{layer: share of its units that stay}, from a CSV or from an earlier, smaller model.

    Raises:
        InputError: no such file, a column is missing, a share is none, or no layer of it is known.
    """
    if not path.is_file():
        raise InputError(
            f"budget.per_layer: no such file: {path}", hint="global, uniform, erk, lamp, a CSV or a result"
        )
    shares = _from_csv(path) if path.suffix == ".csv" else _from_result(path, shapes)
    for name in shares:
        if name not in shapes:
            near = ", ".join(difflib.get_close_matches(name, shapes, 3, 0.4)) or ", ".join(list(shapes)[:5])
            raise InputError(f"{path}: {name!r} is no layer that can be pruned", hint=f"nearest: {near}")
    if not shares:
        raise InputError(f"{path} names no layer", hint="a CSV with the columns layer,keep")
    return shares


def _from_csv(path: Path) -> dict[str, float]:
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"layer", "keep"} <= set(reader.fieldnames or ()):
            raise InputError(f"{path}: the columns layer and keep are needed", hint="first line: layer,keep")
        return {row["layer"]: _share(row["keep"], f"{path}:{reader.line_num}") for row in reader}


def _share(text: str, where: str) -> float:
    try:
        share = float(text)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise InputError(f"{where}: keep is {text!r}", hint="a share between 0 and 1")
    return share


def _from_result(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Rows that are left, where any layer is narrower; otherwise weights that are not zero."""
    state = read(path).spelled([f"{layer}.weight" for layer in shapes]).state
    weights = {layer: state[f"{layer}.weight"] for layer in shapes if f"{layer}.weight" in state}
    if any(tuple(weight.shape) != shapes[layer] for layer, weight in weights.items()):
        return {layer: min(1.0, weight.shape[0] / shapes[layer][0]) for layer, weight in weights.items()}
    return {layer: int((weight != 0).sum()) / weight.numel() for layer, weight in weights.items()}
