"""What methods add to a training step: time and peak memory beside the same loop with plain SGD.

python benchmarks/overhead.py [--arch cifar_resnet20] [--batch 128] [--steps 30] [--turns 3] [--device cpu]

Every run is a process of its own; methods take turns, figures are medians of the means of all steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

TRAIN: dict[str, dict[str, Any]] = {
    "sgd": {},
    "str": {"method": {"name": "str"}, "budget": {"sparsity": 0.9}},
    "grda": {"method": {"name": "grda", "scanned": 0}, "budget": {"sparsity": 0.9}},
    "gumbel": {"method": {"name": "gumbel"}, "budget": {"sparsity": 0.9}},
}
SKIPPED = 5  # first steps, while memory is allocated and kernels are chosen


def one(name: str, asked: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step and peak bytes, in this process."""
    import torch

    from prunecli.arch.registry import build
    from prunecli.arch.spec import parse
    from prunecli.graph.tape import Example
    from prunecli.pipeline.operate import prunable
    from prunecli.recipe.load import validate
    from prunecli.recipe.schema import Train
    from prunecli.train.data import open_data
    from prunecli.train.loop import Tick, Trainer

    torch.manual_seed(0)
    module = build(parse(asked.arch))
    data = open_data("fake:3x32x32", (3, 32, 32), 10)
    epochs = -(-asked.steps * asked.batch // len(data.train))
    settings = Train(epochs=epochs, batch_size=asked.batch, validation=0, augment=False, device=asked.device)
    hooks = []
    if TRAIN[name]:
        recipe = validate({"version": 1, **TRAIN[name]})
        found = recipe.method.hook(
            list(prunable(module, Example((torch.zeros(1, 3, 32, 32),)), recipe.method)), recipe.budget
        )
        hooks = [found]
    moments = []

    def note(tick: Tick) -> None:
        del tick
        if asked.device != "cpu":
            torch.cuda.synchronize()
        moments.append(time.perf_counter())

    Trainer(data, settings, hooks=hooks, report=note).fit(module)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if asked.device != "cpu":
        peak = torch.cuda.max_memory_allocated()
    mean = (moments[-1] - moments[SKIPPED]) / (len(moments) - 1 - SKIPPED)  # what is done now and then included
    return {"seconds": mean, "bytes": float(peak)}


def main() -> None:
    """A row for each method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="cifar_resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", choices=TRAIN)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one, asked)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TRAIN}
    for _ in range(asked.turns):
        for name in TRAIN:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"prunecli {version('prunecli')}, {asked.arch}, batch {asked.batch}, {asked.device}, {asked.turns} turns")
    print("| | ms a step | times SGD | peak MiB | times SGD |")
    print("| --- | --- | --- | --- | --- |")
    plain = {key: statistics.median(run[key] for run in found["sgd"]) for key in ("seconds", "bytes")}
    for name, runs in found.items():
        seconds, size = (statistics.median(run[key] for run in runs) for key in ("seconds", "bytes"))
        ratios = seconds / plain["seconds"], size / plain["bytes"]
        print(f"| {name} | {1e3 * seconds:.1f} | {ratios[0]:.3f} | {size / 2**20:.0f} | {ratios[1]:.3f} |")


if __name__ == "__main__":
    main()
