"""What methods add to a training step: time and peak memory beside the same loop with plain SGD.

python benchmarks/overhead.py [--arch cifar_resnet20] [--batch 128] [--steps 60] [--device cpu]

Every method is a process of its own, and they take turns step by step, in an order that changes with each, so that what
else runs on the machine disturbs all of them alike. Times are means, so that what is done now and then is included.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

TRAIN: dict[str, dict[str, Any]] = {
    "sgd": {},
    "str": {"method": {"name": "str"}, "budget": {"sparsity": 0.9}},
    "grda": {"method": {"name": "grda", "scanned": 0}, "budget": {"sparsity": 0.9}},
    "gumbel": {"method": {"name": "gumbel"}, "budget": {"sparsity": 0.9}},
}
SKIPPED = 5  # first steps, while memory is allocated and kernels are chosen


def one(name: str, asked: argparse.Namespace) -> int:
    """Train in this process, a step for each line on stdin; prints the seconds of each. Returns the peak bytes."""
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
    started = time.perf_counter()

    def note(tick: Tick) -> None:
        nonlocal started
        del tick
        if asked.device != "cpu":
            torch.cuda.synchronize()
        print(time.perf_counter() - started, flush=True)
        sys.stdin.readline()
        started = time.perf_counter()

    Trainer(data, settings, hooks=hooks, report=note).fit(module)
    if asked.device != "cpu":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Run:
    """A method in its process, the seconds of its steps so far, and its peak bytes at the end."""

    process: subprocess.Popen[str]
    seconds: list[float] = field(default_factory=list)
    bytes: int = 0

    def step(self) -> None:
        """Its turn."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(float(self.read()))

    def read(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def main() -> None:
    """A row for each method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="cifar_resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", choices=TRAIN)
    asked = parser.parse_args()
    if asked.one:
        print(one(asked.one, asked), flush=True)
        return
    runs: dict[str, Run] = {}
    for name in TRAIN:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        runs[name] = Run(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        runs[name].read()  # the first step, after all that is done once
    order = random.Random(0)
    for _ in range(asked.steps - 2):
        for run in order.sample(list(runs.values()), len(runs)):
            run.step()
    for run in runs.values():
        output, _ = run.process.communicate("\n" * asked.steps)
        run.bytes = int(output.split()[-1])
    print(f"prunecli {version('prunecli')}, {asked.arch}, batch {asked.batch}, {asked.device}, {asked.steps} steps")
    print("| | ms a step | times SGD | peak MiB | times SGD |")
    print("| --- | --- | --- | --- | --- |")
    plain = runs["sgd"]
    for name, run in runs.items():
        mean, base = (statistics.fmean(r.seconds[SKIPPED:]) for r in (run, plain))
        size = f"{run.bytes / 2**20:.0f} | {run.bytes / plain.bytes:.3f}"
        print(f"| {name} | {1e3 * mean:.1f} | {mean / base:.3f} | {size} |")


if __name__ == "__main__":
    main()
