"""What recovery without training wins: top-1 after a one-shot cut, with new statistics, and with fitted readers.

python benchmarks/recover.py CHECKPOINT DATA [--method magnitude] [--images 1024]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

import prunecli
from prunecli.recipe.load import validate


def main() -> None:
    """One row for each budget."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--method", default="magnitude")
    parser.add_argument("--images", type=int, default=1024)
    asked = parser.parse_args()
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, seed 0, {asked.method}, {asked.images} images")
    print("| FLOPs left | dense | cut | batchnorm | least_squares | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for share in (0.7, 0.5, 0.3):
        found, seconds = {}, 0.0
        for by in ("batchnorm", "least_squares"):
            fields = {"version": 1, "data": asked.data, "method": {"name": asked.method}, "budget": {"flops": share}}
            recipe = validate({**fields, "recover": {"by": by, "images": asked.images}})
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                found[by] = prunecli.prune(recipe, asked.checkpoint, Path(folder) / "out.safetensors")
            seconds = time.perf_counter() - started
        first, second = found["batchnorm"], found["least_squares"]
        assert first.pruned is not None
        accuracies = (first.before.accuracy, first.pruned.accuracy, first.after.accuracy, second.after.accuracy)
        cells = " | ".join(f"{accuracy:.2%}" for accuracy in accuracies if accuracy is not None)
        print(f"| {(first.after.flops or 0) / (first.before.flops or 1):.1%} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
