"""Which networks are traced, halved, run and reloaded, and how much of each can be pruned.

python benchmarks/coverage.py [NAME ...]      one row for each network, then the totals
python benchmarks/coverage.py --timm          the smallest networks of every timm family
python benchmarks/coverage.py --compare       instead: halved, then cut at random, are they equal to the masked model
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import libraries
from randomise import randomise

from prunecli.checkpoint.read import read
from prunecli.checkpoint.write import write_tensors
from prunecli.graph.channels import Channels
from prunecli.graph.copying import aligned
from prunecli.graph.tape import output_tensors
from prunecli.model import blank, filled, open_model
from prunecli.surgery.apply import cut
from prunecli.surgery.probe import halves, survey
from prunecli.surgery.verify import widest

LARGE = 3e8  # parameters that do not fit into memory four times in float64


@dataclass(frozen=True)
class Row:
    """The fate of one network."""

    name: str
    params: int
    reachable: float
    through_norms: float
    left: float
    groups: int
    frozen: int
    seconds: float
    problem: str

    def __str__(self) -> str:
        state = self.problem or "ok"
        return (
            f"| {self.name} | {self.params / 1e6:.1f} M | {self.reachable:.0%} | {self.through_norms:.0%} | "
            f"{self.left:.0%} | "
            f"{self.groups} | {self.frozen} | {self.seconds:.1f} | {state} |"
        )


def reachable(channels: Channels) -> float:
    """Share of the parameters that lie on a channel which can go."""
    tape, covered, total = channels.tape, 0.0, 0
    stays: dict[str, float] = {}
    for slot in channels.slots:
        stays[slot.name] = stays.get(slot.name, 1.0) * float(channels.frozen[slot.channels].mean())
    for name, index in tape.params.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        size = int(np.prod(tape.shapes[index]))
        total += size
        covered += size * (1 - stays.get(name, 1.0))
    return covered / max(total, 1)


def check(name: str) -> Row:
    """Halve every group that can be halved; the result must run, keep its output shapes and reload."""
    model = open_model(name)
    module, example = model.module, model.example
    params = sum(p.numel() for p in module.parameters())
    started = time.perf_counter()
    channels = survey(module, example)
    removed = halves(channels)
    smaller, journal = cut(module, channels, removed)
    seconds = time.perf_counter() - started
    left = sum(p.numel() for p in smaller.parameters()) / params
    frozen = sum(bool(g.frozen) for g in channels.groups)
    through = reachable(survey(module, example, through_norms=True))
    row = (name, params, reachable(channels), through, left, len(channels.groups), frozen, seconds)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        first, second = (output_tensors(m(*example.args)) for m in (module, smaller))
        # a detector's number of results depends on the weights
        skipped = 1 if channels.tape.needs_data else 0
        if [t.shape[skipped:] for t in first] != [t.shape[skipped:] for t in second]:
            return Row(*row, problem="the outputs change their shapes")
        path = Path(folder) / "half.safetensors"
        write_tensors(path, dict(smaller.state_dict(keep_vars=True)), {"format_version": 1})
        assert model.arch is not None
        again = filled(model.arch, read(path).state, journal, name)
        third = output_tensors(aligned(again.eval())(*example.args))
        same = all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(second, third, strict=True))
    return Row(*row, problem="" if same else "the file reloads to something else")


def timm_names(limit: int = 3, most: float = 60e6) -> list[str]:
    """A few networks of every timm family, spread over its list; skipped above `most` parameters."""
    import timm

    from prunecli.arch.spec import parse

    chosen = []
    for family in timm.list_modules():
        found = []
        for name in timm.list_models(module=family):
            try:
                size = sum(p.numel() for p in blank(parse(f"timm:{name}")).parameters())
            except Exception:
                continue
            if size <= most:
                found.append((size, f"timm:{name}"))
            if len(found) == limit:
                break
        chosen += [name for _, name in sorted(found)]
    return chosen


def compare(names: list[str]) -> None:
    """A row for each network, halved and cut at random beside the masked model, then how many are equal."""
    print(libraries.HEADER)
    passed = []
    for name in names:
        model = open_model(name)
        module, example = randomise(model.module), model.example
        if sum(p.numel() for p in module.parameters()) < LARGE:
            module, example = widest(module, example)
        same, row = libraries.judged(name, module, example)
        passed.append(same)
        print(row, flush=True)
        del model, module
        gc.collect()
    print(f"\n{sum(passed)} of {len(passed)} are equal")


def cover(names: list[str]) -> None:
    """A row for each network, then the totals."""
    print("| network | params | reachable | through norms | left after halving | groups | frozen | seconds | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for name in names:
        try:
            row = check(name)
        except Exception as error:
            text = str(error).strip().splitlines()
            row = Row(name, 0, 0.0, 0.0, 1.0, 0, 0, 0.0, f"{type(error).__name__}: {text[0] if text else ''}"[:140])
        rows.append(row)
        print(row, flush=True)
        gc.collect()
    passed = sum(not r.problem for r in rows)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{passed} of {len(rows)} pass; peak memory {memory:.1f} GiB")
    for least in (0.4, 0.6):
        few = [r for r in rows if r.reachable < least]
        print(f"less than {least:.0%} reachable: {len(few)}, through norms {sum(r.through_norms < least for r in few)}")
        print(*(f"  {r.name} {r.reachable:.0%} {r.through_norms:.0%}" for r in few), sep="\n")


def main() -> None:
    """All of torchvision, the smallest of timm, or the named ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--timm", action="store_true", help="the smallest networks of every family of timm")
    parser.add_argument("--compare", action="store_true", help="cut models beside masked ones")
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    models = [f"torchvision:{n}" for n in torchvision.models.list_models() if not n.startswith("quantized")]
    print(f"prunecli {version('prunecli')}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    names = (timm_names() if asked.timm else asked.names) or models
    (compare if asked.compare else cover)(names)


if __name__ == "__main__":
    main()
