"""How exact strip is on every torchvision classifier: filters and rows zeroed at random (30, 50, 90 %), or 99 % of all
weights.

They are those of convolutions and linear layers. Batch norm is randomised, and whatever is a constant as it is made.
Errors are relative to the largest output, the worst of the traced and of another input size.

Nothing is held twice, so that 645 M params fit into 24 GB. python benchmarks/exactness.py [--expand off] [NAME ...]
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from randomise import randomise, zero_filters, zero_weights

from prunecli.arch.registry import build
from prunecli.arch.spec import parse
from prunecli.graph.examples import outputs, random_example
from prunecli.graph.tape import Example, ForwardError, record
from prunecli.graph.tensors import cast
from prunecli.surgery.expand import expand
from prunecli.surgery.strip import strip
from prunecli.surgery.verify import difference

LAYERS = (nn.Conv2d, nn.Linear)
ZEROS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "30 %": lambda module: zero_filters(module, 0.3, kinds=LAYERS),
    "50 %": lambda module: zero_filters(module, 0.5, kinds=LAYERS),
    "90 %": lambda module: zero_filters(module, 0.9, kinds=LAYERS),
    "99 % of weights": lambda module: zero_weights(module, 0.99),
}


def example_of(size: int) -> Example:
    """One image in float64."""
    return Example((torch.zeros(1, 3, size, size, dtype=torch.float64),))


def sizes(module: nn.Module) -> list[int]:
    """The smallest input size that the model takes, and another one where it takes any."""
    fits = []
    for size in (64, 96, 128, 224):
        try:
            record(module, example_of(size))
            fits.append(size)
        except ForwardError:
            continue
    return fits[:2]


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def made(name: str) -> nn.Module:
    """The network with random weights and batch norms, the same every time, in float64."""
    torch.manual_seed(0)
    module: nn.Module = randomise(build(parse(f"torchvision:{name}")))
    return cast(module, torch.float64)


def smaller(module: nn.Module, example: Example, mode: str) -> nn.Module:
    """Stripped and expanded."""
    stripped = strip(module, example, borders=mode != "off").module
    return stripped if mode == "off" else expand(stripped, example, mode)[0]


def worst(module: nn.Module, small: nn.Module, dtype: torch.dtype, tried: list[int]) -> float:
    """Largest error over the input sizes, of the largest output; both are in `dtype` from then on."""
    cast(module, dtype)
    cast(small, dtype)
    found = []
    for size in tried:
        image = random_example(example_of(size), seed=size, batch=1).to(dtype=dtype)
        pairs = zip(outputs(module, image), outputs(small, image), strict=True)
        found += [error / scale for error, scale in (difference(*pair) for pair in pairs)]
    return max(found)


def row(name: str, mode: str) -> tuple[list[float], float, float]:
    """Parameters left for each kind of zeros, worst error in float64 and in float32."""
    tried, left, errors = sizes(made(name)), [], []
    for zero in ZEROS.values():
        module = zero(made(name))
        small = smaller(module, example_of(tried[0]), mode)
        left.append(count(small) / count(module))
        errors.append([worst(module, small, dtype, tried) for dtype in (torch.float64, torch.float32)])
        del module, small  # before the next ones are made
    wide, single = (max(each) for each in zip(*errors, strict=True))
    return left, wide, single


def main() -> None:
    """One row for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--expand", choices=("off", "auto", "always"), default="always", help="as strip.expand")
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    names = asked.names or torchvision.models.list_models(module=torchvision.models)
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, torchvision {torchvision.__version__}, seed 0")
    print(f"| network | params left: {' | '.join(ZEROS)} | error float64 | error float32 | seconds |")
    print(f"| --- |{' --- |' * (len(ZEROS) + 3)}")
    for name in names:
        started = time.perf_counter()
        try:
            left, wide, single = row(name, asked.expand)
        except Exception as error:  # a failure is a row, not the end
            print(f"| {name} | FAILED: {type(error).__name__}: {str(error)[:200]} |", flush=True)
            continue
        shares = " | ".join(f"{share:.1%}" for share in left)
        print(f"| {name} | {shares} | {wide:.1e} | {single:.1e} | {time.perf_counter() - started:.0f} |", flush=True)


if __name__ == "__main__":
    main()
