"""Multiply-adds of every torchvision classifier beside the figure in its weight metadata, at the metadata's crop size.

python benchmarks/flops.py [NAME ...]
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
import torchvision

from prunecli.arch.spec import parse
from prunecli.cost.count import MULTIPLY_ADDS, flops
from prunecli.graph.channels import trace
from prunecli.graph.tape import Example
from prunecli.model import blank


def crop_size(weights: torchvision.models.WeightsEnum) -> int:
    """Side of the images that the metadata speaks of."""
    return int(weights.transforms.keywords["crop_size"])


def main() -> None:
    """One row for each network; nothing is computed, shapes on the meta device are enough."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    print("| network | crop | multiply-adds | metadata | difference | batch norm and the rest |")
    print("| --- | --- | --- | --- | --- | --- |")
    apart = []
    for name in names or torchvision.models.list_models(module=torchvision.models):
        weights = min(torchvision.models.get_model_weights(name), key=crop_size)
        crop = crop_size(weights)
        module = blank(parse(f"torchvision:{name}")).eval()
        channels = trace(module, Example((torch.zeros(1, 3, crop, crop, device="meta"),)))
        kept = np.ones(channels.count, dtype=np.bool_)
        found, every = flops(channels, MULTIPLY_ADDS)(kept), flops(channels)(kept)
        stated = weights.meta["_ops"] * 1e9
        difference = found / stated - 1
        apart += [name] if abs(difference) > 1e-3 else []
        print(f"| {name} | {crop} | {found / 1e9:.3f} G | {stated / 1e9:.3f} G | {difference:+.3%} | {every - found} |")
    print(f"\nmore than 0.1 % apart: {', '.join(apart) or 'none'}")


if __name__ == "__main__":
    main()
