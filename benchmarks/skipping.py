"""How much faster single images are when gates skip channels: gathered, masked and dense, turn by turn.

python benchmarks/skipping.py [--networks resnet50 vgg16_bn mobilenet_v2] [--open 0.5] [--turns 15]

Random weights; heads are set so that about the given share of channels is open. One image of 224 pixels, 2 threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib.metadata import version

import torch
from torch import nn

from prunecli.cost.dynamic import dynamic_cost, masks_of
from prunecli.graph.copying import copied
from prunecli.graph.tape import Example
from prunecli.surgery.gates import candidates, gates_of, install


def gated(module: nn.Module, example: Example, share: float) -> nn.Module:
    """A copy with gates whose heads open about a share of the channels."""
    twin = copied(module)
    install(twin, [found.gate for found in candidates(module, example)])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in gates_of(twin).values():
            head = layer.head
            assert isinstance(head, nn.Linear)
            order = torch.rand(head.out_features, generator=generator)
            head.bias.copy_(torch.where(order < share, 1.0, -1.0))
    return twin


@torch.no_grad()
def main() -> None:
    """A row for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vgg16_bn", "mobilenet_v2"])
    parser.add_argument("--open", type=float, default=0.5)
    parser.add_argument("--turns", type=int, default=15)
    asked = parser.parse_args()
    import torchvision

    torch.set_num_threads(2)
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, {asked.open:.0%} open, {asked.turns} turns")
    print("| network | FLOPs | dense ms | masked | gathered | gathered / dense | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in asked.networks:
        torch.manual_seed(0)
        module = torchvision.models.get_model(name).eval()
        image = torch.randn(1, 3, 224, 224)
        example = Example((image,))
        dense = gated(module, example, 1.0)
        dynamic = gated(module, example, asked.open)
        cost = dynamic_cost(dynamic, example)
        share = float(cost(masks_of(dynamic, [image]))[0] / cost(masks_of(dense, [image]))[0])
        masked = copied(dynamic)
        for layer in gates_of(masked).values():
            layer.watched = True
        runs = {"dense": module, "masked": masked, "gathered": dynamic}
        seconds: dict[str, list[float]] = {key: [] for key in runs}
        for turn in range(asked.turns + 2):
            for key, network in runs.items():
                started = time.perf_counter()
                network(image)
                if turn > 1:
                    seconds[key].append(time.perf_counter() - started)
        times = {key: 1e3 * statistics.median(values) for key, values in seconds.items()}
        difference = float((dynamic(image) - masked(image)).abs().max() / masked(image).abs().max())
        cells = " | ".join(f"{times[key]:.1f}" for key in runs)
        ratio = times["gathered"] / times["dense"]
        print(f"| {name} | {share:.1%} | {cells} | {ratio:.2f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
