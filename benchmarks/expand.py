"""What strip leaves, and how fast it is, beside EIDOSLAB simplify in its exact mode.

Half of each convolution's filters are zero, each layer on its own; batch norm is randomised.

git clone https://github.com/EIDOSLAB/simplify && PYTHONPATH=simplify python benchmarks/expand.py [NAME ...]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from simplify import simplify
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from randomise import randomise, zero_filters

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.cost.latency import forward, turns
from prunecli.cost.measure import count_flops
from prunecli.graph.copying import copied
from prunecli.graph.examples import random_example
from prunecli.graph.tape import Example
from prunecli.surgery.expand import expand
from prunecli.surgery.strip import strip
from prunecli.surgery.verify import compare

NETS = ["resnet18", "resnet50", "vgg16_bn", "mobilenet_v2", "densenet121", "googlenet", "shufflenet_v2_x1_0",
        "squeezenet1_1", "mnasnet1_0", "resnext50_32x4d", "efficientnet_b0", "regnet_x_400mf"]  # fmt: skip
Maker = Callable[[nn.Module, Example], nn.Module]


def ours(mode: str) -> Maker:
    """Strip in float64, then expand."""

    def make(module: nn.Module, example: Example) -> nn.Module:
        wide = example.to(dtype=torch.float64)
        stripped = strip(copied(module).double(), wide, borders=mode != "off").module
        return (stripped if mode == "off" else expand(stripped, wide, mode)[0]).float()

    return make


def peer(module: nn.Module, example: Example) -> nn.Module:
    """EIDOSLAB simplify without folding batch norm."""
    made: nn.Module = simplify(copied(module), example.args[0], fuse_bn=False)
    return made.eval()


MAKERS: dict[str, Maker] = {"off": ours("off"), "auto": ours("auto"), "always": ours("always"), "simplify": peer}


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def main() -> None:
    """Four rows for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"prunecli {version('prunecli')}, torch {torch.__version__}, {torch.get_num_threads()} threads, batch 1, seed 0"
    )
    print("| network | tool | params left | FLOPs left | time left | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in asked.names or NETS:
        torch.manual_seed(0)
        module = zero_filters(randomise(build(parse(f"torchvision:{name}"))), 0.5).eval()
        example = Example((torch.zeros(1, 3, asked.size, asked.size),))
        made: dict[str, nn.Module] = {}
        for tool, maker in MAKERS.items():
            try:
                made[tool] = maker(module, example)
                made[tool](*example.args)
            except Exception as error:  # a crash is a result
                made.pop(tool, None)
                print(f"| {name} | {tool} | crashes: {type(error).__name__} |", flush=True)
        real = random_example(example, 0).to(dtype=torch.float32)
        seconds = turns([forward(m, real) for m in (module, *made.values())], torch.device("cpu"), asked.seconds)
        shares = np.median(seconds[:, 1:] / seconds[:, :1], axis=0)
        whole = count_flops(module, example) or 1
        for (tool, smaller), share in zip(made.items(), shares, strict=True):
            flops = (count_flops(smaller, example) or 0) / whole
            worst = compare(module, smaller, [real], torch.float32).max_rel_error
            print(
                f"| {name} | {tool} | {count(smaller) / count(module):.1%} | {flops:.1%} | {share:.1%} | {worst:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
