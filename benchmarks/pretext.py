"""Are masks that are found without labels as good? Masks by each objective, re-trained from the same random weights.

python benchmarks/pretext.py [--model digits_net] [--input 1x3x32x32] [--data digits] [--sparsity 0.9] [--epochs 20]
    [--seeds 3] [--fraction 0.2] [--only labels,rotation] [--shuffled]

With --shuffled each mask is compared with one that keeps as many weights of every layer, others at random: what is
left of a difference then is in the weights that were picked, the rest in how many of each layer stay.
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

RANDOM = {"name": "random", "structure": "weight"}


def main() -> None:
    """A row for each objective and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="digits_net")
    parser.add_argument("--input", help="where the images are not of the size that the model takes by itself")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pretext", type=int, default=6)
    parser.add_argument("--fraction", type=float, default=0.2, help="of what is left that goes in every round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="labels,rotation,exemplar,instance,random")
    parser.add_argument("--shuffled", action="store_true")
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
        methods["random"] = RANDOM
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as folder:
            reference = Path(folder) / "labels.safetensors"
            for name, method in methods.items():
                output = Path(folder) / f"{name}.safetensors"
                _row(seed, name, _pruned(asked, method, {"sparsity": asked.sparsity}, seed, output, reference))
                if asked.shuffled and name != "random":
                    shares = {"per_layer": str(output.with_suffix(".csv"))}
                    again = output.with_stem(f"{name}-shuffled")
                    _row(seed, f"{name}, shuffled", _pruned(asked, RANDOM, shares, seed, again, reference))


def _row(seed: int, name: str, facts: PruneFacts) -> None:
    shared = [facts.found.get(key) for key in ("overlap", "overlap of random masks")]
    cells = " | ".join("" if share is None else f"{share:.3f}" for share in shared)
    print(f"| {seed} | {name} | {facts.after.accuracy:.2%} | {cells} |", flush=True)


def _pruned(
    asked: argparse.Namespace,
    method: dict[str, Any],
    budget: dict[str, Any],
    seed: int,
    output: Path,
    reference: Path,
) -> PruneFacts:
    """From random weights that depend on the seed alone; the CSV beside the output tells what is kept of each layer."""
    torch.manual_seed(seed)
    compared = {"overlap_with": str(reference)} if reference.exists() else {}
    fields = {
        "version": 1, "data": asked.data, "input": asked.input, "seed": seed, "method": method, "budget": budget,
        "train": {"epochs": asked.epochs, "lr": 0.05, "batch_size": 64},
        "report": {"layers": str(output.with_suffix(".csv")), **compared},
    }  # fmt: skip
    return prunecli.prune(validate(fields), asked.model, output)


if __name__ == "__main__":
    main()
