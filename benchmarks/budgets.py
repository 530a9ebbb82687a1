"""From a network to a smaller file whose budget is met: a small network of every family of a library.

python benchmarks/budgets.py [--library pytorchcv] [--unit flops] [--amount 0.6] [--most 14e6] [--onnx]
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import prunecli
from prunecli.arch.spec import parse
from prunecli.errors import InputError, PrunecliError
from prunecli.graph.copying import copied
from prunecli.model import blank
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Recipe


@dataclass(frozen=True)
class Network:
    """A network by its name, or in memory with what it takes."""

    name: str
    params: int
    module: nn.Module | None = None
    takes: prunecli.Opening = field(default_factory=prunecli.Opening)


def main() -> None:
    """A row for each family, then how many met the budget."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", default="timm", choices=LIBRARIES)
    parser.add_argument("--unit", default="flops", choices=["flops", "params", "size"])
    parser.add_argument("--amount", type=float, default=0.6)
    parser.add_argument("--most", type=float, default=14e6, help="parameters of the dense network")
    parser.add_argument("--onnx", action="store_true", help="export the result and run it in onnxruntime")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    library = f"{asked.library} {version(asked.library)}"
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, {library}, {asked.unit}")
    print("| network | params | asked | met | error | ONNX | s |\n| --- | --- | --- | --- | --- | --- | --- |")
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {asked.unit: asked.amount}})
    rows = [_met(network, recipe, onnx=asked.onnx) for network in LIBRARIES[asked.library](asked.most)]
    print(f"{sum(rows)} of {len(rows)} met from below")


def _of_timm(most: float) -> Iterator[Network]:
    """The first of each family that is so small, smallest first."""
    import timm

    found = []
    for family in timm.list_modules():
        for name in (f"timm:{name}" for name in timm.list_models(module=family)):
            try:
                size = sum(p.numel() for p in blank(parse(name)).parameters())
            except InputError:  # asks for a library
                continue
            if size <= most:
                found.append(Network(name, size))
                break
    return iter(sorted(found, key=lambda network: network.params))


def _of_pytorchcv(most: float) -> Iterator[Network]:
    """The first of each family that is so small and takes one image, of at most 224 pixels a side."""
    from pytorchcv.model_provider import _models, get_model

    done = set()
    for name in _models:
        family = re.split(r"\d|_", name)[0]
        if family in done:
            continue
        try:
            module = get_model(name, pretrained=False).eval()
            sides = getattr(module, "in_size", (224, 224))
            image = torch.zeros(1, getattr(module, "in_channels", 3), *(min(side, 224) for side in sides))
            size = sum(p.numel() for p in module.parameters())
            if size > most:
                continue
            with torch.no_grad():
                module(image)
        except Exception:  # other inputs, other sizes, libraries that are not here
            continue
        done.add(family)
        yield Network(name, size, module, prunecli.Opening.like(image))


LIBRARIES: dict[str, Callable[[float], Iterator[Network]]] = {"timm": _of_timm, "pytorchcv": _of_pytorchcv}


def _met(network: Network, recipe: Recipe, *, onnx: bool) -> bool:
    """Print a row; whether the budget was met."""
    assert recipe.budget is not None
    started, asked = time.perf_counter(), recipe.budget.amount
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        try:
            facts = prunecli.prune(recipe, network.module or network.name, path, network.takes)
            assert facts.budget is not None
            assert facts.verified is not None
            met = facts.budget.met
            cells = f"{met:.2%} | {facts.verified.max_rel_error:.0e} | "
            if onnx:
                small = path if network.module is None else prunecli.load(path, into=copied(network.module))
                cells += f"{prunecli.export(small, Path(folder) / 'small.onnx', network.takes).max_abs_error:.0e}"
        except PrunecliError as error:
            met, cells = 1.0, f"{' '.join(str(error).split())} | | "
    seconds = time.perf_counter() - started
    print(f"| {network.name} | {network.params / 1e6:.1f} M | {asked:.0%} | {cells} | {seconds:.0f} |", flush=True)
    return met <= asked


if __name__ == "__main__":
    main()
