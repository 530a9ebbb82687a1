"""Trace, group and halve: prunecli beside Torch-Pruning, one thread, CPU time, median.

pip install --no-deps torch-pruning && python benchmarks/engine.py [--repeats 5] [NAME ...]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import torch
import torch_pruning
import torchvision
from torch import nn

from prunecli.graph.tape import Example
from prunecli.model import open_model
from prunecli.surgery.apply import cut
from prunecli.surgery.probe import halves, survey


def ours(module: nn.Module, example: Example) -> int:
    """Trial cut included: what comes out is known to run."""
    channels = survey(module, example)
    smaller, _ = cut(module, channels, halves(channels))
    return sum(p.numel() for p in smaller.parameters())


def peer(module: nn.Module, example: Example) -> int:
    """Torch-Pruning with plain settings; the classifier is left alone."""
    classifier = [m for m in module.modules() if isinstance(m, nn.Linear)][-1:]
    pruner = torch_pruning.pruner.MetaPruner(
        module, example.args[0], importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=0.5, ignored_layers=classifier,
    )  # fmt: skip
    pruner.step()
    return sum(p.numel() for p in module.parameters())


def measure(run: Callable[[nn.Module, Example], int], name: str, repeats: int) -> tuple[float, int] | str:
    """(CPU seconds, parameters left), or why there is no figure; a fresh model for each repeat."""
    seconds, left = [], 0
    for _ in range(repeats):
        model = open_model(name)
        started = time.process_time()
        try:
            left = run(model.module, model.example)
        except Exception as error:
            return type(error).__name__
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), left


def row(name: str, repeats: int) -> tuple[str, float | None]:
    """One row of the table, and how many times faster."""
    first, second = (measure(run, f"torchvision:{name}", repeats) for run in (ours, peer))
    ratio = None if isinstance(first, str) or isinstance(second, str) else second[0] / first[0]
    cells = [f"{f[0]:.2f} | {f[1] / 1e6:.1f} M" if not isinstance(f, str) else f"{f} | -" for f in (first, second)]
    return f"| {name} | {cells[0]} | {cells[1]} | {f'{ratio:.1f}' if ratio else '-'} |", ratio


def main() -> None:
    """One row for each classifier, each in a process of its own: a peer may take the interpreter down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", action="store_true", help="print one row, here")
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if asked.one:
        print(*row(asked.names[0], asked.repeats), sep="\t")
        return
    names = asked.names or torchvision.models.list_models(module=torchvision.models)
    print(
        f"prunecli {version('prunecli')}, torch-pruning {version('torch-pruning')}, torch {torch.__version__}, 1 thread"
    )
    print("| network | prunecli s | params left | torch-pruning s | params left | times faster |")
    print("| --- | --- | --- | --- | --- | --- |")
    ratios = []
    for name in names:
        command = [sys.executable, __file__, "--one", "--repeats", str(asked.repeats), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text, _, ratio = done.stdout.strip().rpartition("\n")[2].partition("\t")
        ratios += [float(ratio)] if ratio not in ("", "None") else []
        print(text or f"| {name} | the process ended with {done.returncode} |", flush=True)
    if ratios:
        print(f"\nmedian {statistics.median(ratios):.1f} times, least {min(ratios):.1f}, on {len(ratios)} networks")


if __name__ == "__main__":
    main()
