"""Time: measured end to end, and modelled by module so that a budget search can walk without running anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import nn

from prunecli.arrays import Bools, Floats
from prunecli.collectives import of_first
from prunecli.cost.count import Polynomial, work
from prunecli.graph.channels import Channels
from prunecli.graph.tape import Example
from prunecli.surgery.apply import cut
from prunecli.surgery.plan import of_each
from prunecli.surgery.probe import settle

Run = Callable[[], object]
LEVELS = (1.0, 0.75, 0.5, 0.25)  # shares of every group at which modules are timed for the fit
NANO = 1e9
_MULTIPLES = (1, 2, 4, 8, 16, 32)


def turns(runs: Sequence[Run], device: torch.device, seconds: float = 1.0, least: int = 15) -> Floats:
    """(turns, runs) seconds that each of `runs` takes, for `seconds` or at least so many turns.

    Every turn has an order of its own: what runs behind a large model finds the caches cold. Of several processes the
    first one measures.
    """
    return of_first(lambda: _turns(runs, device, seconds, least))


def _turns(runs: Sequence[Run], device: torch.device, seconds: float, least: int) -> Floats:
    found: list[Floats] = []
    order = np.random.default_rng(0)
    for run in runs:
        run()
    until = time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < until:
        row = np.zeros(len(runs))
        for number in order.permutation(len(runs)):
            started = _now(device)
            runs[number]()
            row[number] = _now(device) - started
        found.append(row)
    return np.asarray(found)


def forward(module: nn.Module, example: Example) -> Run:
    """One forward pass in eval mode without gradients."""
    module.eval()

    def run() -> object:
        with torch.inference_mode():
            return module(*example.args, **example.kwargs)

    return run


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fitted(module: nn.Module, example: Example, channels: Channels) -> Polynomial:
    """Nanoseconds of one forward pass as a polynomial in the widths.

    Each module's own time, measured at four widths, is fitted by ``a + b * work`` with a, b >= 0; work is FLOPs
    where an op has any, otherwise the elements it writes.

    Args:
        module: in the dtype and on the device that count.
        example: one input.
        channels: of the module.
    """
    model = work(channels)
    features: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for share in LEVELS:
        channels = settle(module, example, channels, _narrowed(channels, share))
        removed = _narrowed(channels, share)
        smaller, _ = cut(module, channels, removed)
        for name, own in of_first(partial(_own_seconds, smaller, example)).items():
            features.setdefault(name, []).append(float(model.by_module(~removed).get(name, 0)))
            seconds.setdefault(name, []).append(own * NANO)
    fits = {name: _fit(features[name], seconds[name]) for name in seconds}
    slopes = np.asarray([fits[name][1] if name in fits else 0.0 for name in model.modules])
    constant = sum(offset for offset, _ in fits.values())
    return replace(model, coefficients=model.coefficients * slopes).plus(constant)


def _fit(work_done: Sequence[float], nanoseconds: Sequence[float]) -> tuple[float, float]:
    from scipy.optimize import nnls  # a quarter of a second

    scale = max(*work_done, 1.0)
    design = np.stack([np.ones(len(work_done)), np.asarray(work_done) / scale], axis=1)
    (offset, slope), _ = nnls(design, np.asarray(nanoseconds))
    return float(offset), float(slope / scale)


def _narrowed(channels: Channels, share: float) -> Bools:
    """Every group at this share of its width, as far as all constraints allow."""
    return of_each(channels, lambda group: group[max(1, round(share * len(group))) :])


def _own_seconds(module: nn.Module, example: Example, repeats: int = 9) -> dict[str, float]:
    """Median seconds that each module spends outside its children."""
    runs: list[dict[str, float]] = []
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    run = forward(module, example)
    run()
    for _ in range(repeats):
        own: dict[str, float] = {}
        with _timed(module, own, device):
            run()
        runs.append(own)
    return {name: statistics.median(own.get(name, 0.0) for own in runs) for name in runs[0]}


@contextmanager
def _timed(module: nn.Module, own: dict[str, float], device: torch.device) -> Iterator[None]:
    inner = [0.0]  # seconds of the children of each module under way
    started: list[float] = []

    def enter() -> None:
        inner.append(0.0)
        started.append(_now(device))

    def leave(name: str) -> None:
        whole = _now(device) - started.pop()
        own[name] = own.get(name, 0.0) + whole - inner.pop()
        inner[-1] += whole

    handles = []
    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(lambda *_: enter()))
        handles.append(part.register_forward_hook(lambda *_, name=name: leave(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@cache
def preferred_multiple(device: str = "cpu") -> int:
    """The smallest multiple of channels at which a 3x3 convolution costs no more per FLOP than at the best one.

    Timed on `device` once per process; 5 % count as equal.
    """
    where = torch.device(device)
    widths = {multiple: multiple * (120 // multiple | 1) for multiple in _MULTIPLES}  # odd multiples near 120
    layers = {m: nn.Conv2d(width, width, 3, padding=1, bias=False).to(where).eval() for m, width in widths.items()}
    runs = [forward(layers[m], Example((torch.ones(1, width, 28, 28, device=where),))) for m, width in widths.items()]
    seconds = dict(zip(widths, np.median(turns(runs, where), axis=0), strict=True))
    cost = {multiple: seconds[multiple] / width**2 for multiple, width in widths.items()}
    return min(multiple for multiple, each in cost.items() if each <= 1.05 * min(cost.values()))
