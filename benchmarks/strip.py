"""What strip removes, and how exact it is: half of every convolution's filters zeroed, batch norm randomised.

python benchmarks/strip.py [ARCH ...]
"""

from __future__ import annotations

import copy
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from randomise import randomise, zero_filters
from zoo.test_strip_zoo import NETS

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.cost.measure import fvcore_flops
from prunecli.graph.tape import Example
from prunecli.surgery.strip import strip
from prunecli.surgery.verify import compare, random_example


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def main(names: list[str]) -> None:
    """One row for each network."""
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, seed 0")
    print("| network | input | params left | FLOPs left | error float64 | error float32 | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names or NETS:
        torch.manual_seed(0)
        size = NETS.get(name, 64)
        module = zero_filters(randomise(build(parse(name))), 0.5).eval().double()
        example = Example((torch.zeros(1, 3, size, size, dtype=torch.float64),))
        started = time.perf_counter()
        small = strip(module, example).module
        seconds = time.perf_counter() - started
        params = count(small) / count(module)
        flops = (fvcore_flops(small, example) or 0) / (fvcore_flops(module, example) or 1)
        tests = [random_example(example, 0)]
        wide = compare(module, small, tests, torch.float64).max_rel_error
        single = compare(module, copy.deepcopy(small).float(), tests, torch.float32).max_rel_error
        print(
            f"| {name} | {size} | {params:.1%} | {flops:.1%} | {wide:.1e} | {single:.1e} | {seconds:.1f} |", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
