"""From a network to a smaller file whose budget is met: a small network of every timm family, asked against met.

python benchmarks/budgets.py [--unit flops] [--amount 0.6] [--most 14e6] [--onnx]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import timm
import torch

import prunecli
from prunecli.arch.spec import parse
from prunecli.errors import InputError, PrunecliError
from prunecli.model import blank
from prunecli.recipe.load import validate
from prunecli.recipe.schema import Recipe


def main() -> None:
    """A row for each family, then how many met the budget."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--unit", default="flops", choices=["flops", "params", "size"])
    parser.add_argument("--amount", type=float, default=0.6)
    parser.add_argument("--most", type=float, default=14e6, help="parameters of the dense network")
    parser.add_argument("--onnx", action="store_true", help="export the result and run it in onnxruntime")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, timm {timm.__version__}, {asked.unit}")
    print("| network | params | asked | met | error | ONNX | s |\n| --- | --- | --- | --- | --- | --- | --- |")
    recipe = validate({"version": 1, "method": {"name": "magnitude"}, "budget": {asked.unit: asked.amount}})
    rows = [_row(name, size, recipe, onnx=asked.onnx) for name, size in _smallest(asked.most)]
    print(f"{sum(rows)} of {len(rows)} met from below")


def _smallest(most: float) -> list[tuple[str, int]]:
    """(network, parameters): the first of each family that is so small."""
    found = []
    for family in timm.list_modules():
        for name in (f"timm:{name}" for name in timm.list_models(module=family)):
            try:
                size = sum(p.numel() for p in blank(parse(name)).parameters())
            except InputError:  # asks for a library
                continue
            if size <= most:
                found.append((name, size))
                break
    return sorted(found, key=lambda pair: pair[1])


def _row(name: str, params: int, recipe: Recipe, *, onnx: bool) -> bool:
    """Whether the budget was met."""
    assert recipe.budget is not None
    started, asked = time.perf_counter(), recipe.budget.amount
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        try:
            facts = prunecli.prune(recipe, name, path)
            assert facts.budget is not None
            assert facts.verified is not None
            met = facts.budget.met
            cells = f"{met:.2%} | {facts.verified.max_rel_error:.0e}"
            cells += f" | {prunecli.export(path, Path(folder) / 'small.onnx').max_abs_error:.0e}" if onnx else " | "
        except PrunecliError as error:
            met, cells = 1.0, f"{error} | | "
    print(
        f"| {name} | {params / 1e6:.1f} M | {asked:.0%} | {cells} | {time.perf_counter() - started:.0f} |", flush=True
    )
    return met <= asked


if __name__ == "__main__":
    main()
