"""Are masks that are found without labels as good? Masks by each objective, re-trained from the same random weights.

python benchmarks/pretext.py [--model digits_net] [--data digits] [--sparsity 0.9] [--epochs 20] [--seeds 3]
    [--fraction 0.2] [--only labels,rotation]
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import prunecli
from prunecli.facts import PruneFacts
from prunecli.recipe.load import validate


def main() -> None:
    """A row for each objective and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="digits_net")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pretext", type=int, default=6)
    parser.add_argument("--fraction", type=float, default=0.2, help="of what is left that goes in every round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="labels,rotation,exemplar,instance,random")
    asked = parser.parse_args()
    print(
        f"prunecli {version('prunecli')}, torch {torch.__version__}, {asked.model}, {asked.data}, {asked.sparsity:.0%}"
    )
    print("| seed | mask by | top-1 after training with labels | overlap with the mask by labels | of random masks |")
    print("| --- | --- | --- | --- | --- |")
    short = {"epochs": asked.pretext, "lr": 0.05, "batch_size": 64, "validation": 0.0}
    methods: dict[str, dict[str, Any]] = {
        name: {"name": "selfsup", "objective": name, "fraction": asked.fraction, "pretext": short}
        for name in asked.only.split(",")
    }
    if "random" in methods:
        methods["random"] = {"name": "random", "structure": "weight"}
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as folder:
            reference = Path(folder) / "labels.safetensors"
            for name, method in methods.items():
                facts = _pruned(asked, method, seed, Path(folder) / f"{name}.safetensors", reference)
                shared = [facts.found.get(key) for key in ("overlap", "overlap of random masks")]
                cells = " | ".join("" if share is None else f"{share:.3f}" for share in shared)
                print(f"| {seed} | {name} | {facts.after.accuracy:.2%} | {cells} |", flush=True)


def _pruned(asked: argparse.Namespace, method: dict[str, Any], seed: int, output: Path, reference: Path) -> PruneFacts:
    """From random weights that depend on the seed alone."""
    torch.manual_seed(seed)
    fields = {
        "version": 1, "data": asked.data, "seed": seed, "method": method, "budget": {"sparsity": asked.sparsity},
        "train": {"epochs": asked.epochs, "lr": 0.05, "batch_size": 64},
        "report": {"overlap_with": str(reference)} if reference.exists() else {},
    }  # fmt: skip
    return prunecli.prune(validate(fields), asked.model, output)


if __name__ == "__main__":
    main()
