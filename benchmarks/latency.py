"""Measured against theoretical speed-up at half of the FLOPs: dense, masked and smaller model, turn by turn.

Beside them a model with two channels left of each group, which shows what no cut can save: were the rest of the time to
fall with the FLOPs, so much of the theory would be measured ("at most").

python benchmarks/latency.py [--runtime onnxruntime] [--device cuda] [--seconds 10] [NAME ...]
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import prunecli
from prunecli.cost.latency import forward, preferred_multiple, turns
from prunecli.exporters.targets import onnx_session
from prunecli.graph.channels import trace
from prunecli.graph.copying import copied
from prunecli.graph.tape import Example
from prunecli.model import open_model
from prunecli.recipe.load import validate
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.plan import of_each

RUNTIMES = {"torch": forward, "onnxruntime": onnx_session}
SETTINGS: list[tuple[int | str, str, bool]] = [  # round_to, per_layer, fold_batchnorm
    (1, "global", False),
    (8, "global", False),
    ("auto", "global", False),
    ("auto", "uniform", False),
    ("auto", "global", True),
]


def main() -> None:
    """One row for each network, batch size, rounding and way to share the budget."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("names", nargs="*", default=["resnet50", "mobilenet_v2"])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(asked.device)
    runtime = RUNTIMES[asked.runtime]
    where = f"{torch.get_num_threads()} threads, {device}, {asked.runtime}"
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, {where}")
    print(f"round_to auto is {preferred_multiple(asked.device)} here")
    print(
        "| network | batch | round_to | per_layer | folded | FLOPs left | dense ms | masked ms | smaller ms "
        "| two channels ms | speed-up | of theory | at most |"
    )
    print(f"|{' --- |' * 13}")
    for name in asked.names:
        source = f"torchvision:{name}"
        for multiple, share, fold in SETTINGS:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "half.safetensors"
                budget = {"flops": asked.flops, "per_layer": share, "device": asked.device}
                fields = {"version": 1, "method": {"name": "magnitude"}, "budget": budget}
                facts = prunecli.prune(
                    validate({**fields, "strip": {"round_to": multiple, "fold_batchnorm": fold}}), source, path
                )
                smaller = open_model(str(path)).module.to(device)
            dense = open_model(source)
            channels = trace(dense.module, dense.example)
            every_second = np.zeros(channels.count, dtype=np.bool_)
            for group in channels.groups:
                every_second[group.channels[1::2]] = not group.frozen
            twin = masked(dense.module, channels, every_second).to(device)  # zeros cost as much as numbers
            whole = copied(dense.module).to(device)
            least = cut(dense.module, channels, of_each(channels, lambda group: group[2:]))[0].to(device)
            left = (facts.after.flops or 0) / (facts.before.flops or 1)
            for batch in (1, 16):
                example = Example((torch.randn(batch, 3, 224, 224, device=device),))
                seconds = turns([runtime(m, example) for m in (whole, twin, smaller, least)], device, asked.seconds)
                gain = float(np.median(seconds[:, 0] / seconds[:, 2]))
                fixed = float(np.median(seconds[:, 3] / seconds[:, 0]))
                times = " | ".join(f"{1e3 * t:.1f}" for t in np.median(seconds, axis=0))
                head = f"| {name} | {batch} | {multiple} | {share} | {fold} | {left:.1%}"
                most = left / (fixed + (1 - fixed) * left)
                print(f"{head} | {times} | {gain:.2f} | {gain * left:.2f} | {most:.2f} |", flush=True)


if __name__ == "__main__":
    main()
