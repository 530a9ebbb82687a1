"""Learned soft thresholds as parametrizations, and the control that makes them meet a sparsity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunecli.methods.hook import Hook

UPDATES = 200  # how often in a run the offset is set anew
_LOWEST, _HIGHEST, _HALVINGS = -60.0, 20.0, 40


def soft(weight: Tensor, threshold: Tensor) -> Tensor:
    """``sign(w) relu(|w| - t)``; autograd gives the paper's gradients for w and t (equations 5 and 6)."""
    return weight.sign() * torch.relu(weight.abs() - threshold)


class SoftThreshold(nn.Module):
    """The parametrization of one weight.

    Attributes:
        s: learned, decays like a weight.
        offset: added to every s of the network by the control.
    """

    offset: Tensor

    def __init__(self, s: float, like: Tensor) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s, dtype=like.dtype, device=like.device))
        self.register_buffer("offset", torch.zeros((), dtype=like.dtype, device=like.device))

    @property
    def threshold(self) -> Tensor:
        """``g(s)``."""
        return self.at(self.offset)

    def at(self, offset: Tensor) -> Tensor:
        """The threshold that another offset would give."""
        return torch.sigmoid(self.s + offset)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses."""
        return soft(weight, self.threshold)


class Thresholds(Hook):
    """Soft thresholds on some weights of a model.

    Args:
        weights: names of the weights.
        sparsity: share of zeros among them at the end, met to the last weight from above.
        s_init: of every layer.
        ramp: share of the run in which the sparsity rises, as ``1 - (1 - p)^3``.
    """

    keeps_best = False

    def __init__(self, weights: Sequence[str], sparsity: float, s_init: float, ramp: float) -> None:
        self._names = list(weights)
        self._sparsity = sparsity
        self._s_init = s_init
        self._ramp = ramp
        self._steps = 1
        self._now: dict[str, float] = {}

    def attach(self, module: nn.Module, steps: int) -> None:
        """Insert the thresholds; weights grow by theirs, so that no output changes."""
        self._steps = steps
        with torch.no_grad():
            for owner, attribute in self._places(module):
                weight = getattr(owner, attribute)
                wrapped = SoftThreshold(self._s_init, weight)
                weight.add_(weight.sign() * wrapped.threshold)
                parametrize.register_parametrization(owner, attribute, wrapped, unsafe=True)

    def after_step(self, module: nn.Module, step: int) -> None:
        """Follow the schedule."""
        if step % max(1, self._steps // UPDATES) and step != self._steps:
            return
        gone = min(1.0, step / (self._ramp * self._steps))
        target = self._sparsity * (1 - (1 - gone) ** 3)
        self._set_offset(module, target)
        layers = self._layers(module)
        mean = sum(float(p.threshold.detach()) for p, _ in layers) / len(layers)
        self._now = {"sparsity": target, "threshold": mean}

    def figures(self) -> Mapping[str, float]:
        """Sparsity, and the mean threshold."""
        return self._now

    def finalize(self, module: nn.Module) -> None:
        """Meet the sparsity exactly and leave the weights as the layers used them."""
        self._set_offset(module, self._sparsity)
        for owner, attribute in self._places(module):
            parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)

    def _places(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        split = (name.rpartition(".") for name in self._names)
        return [(module.get_submodule(owner), attribute) for owner, _, attribute in split]

    def _layers(self, module: nn.Module) -> list[tuple[SoftThreshold, Tensor]]:
        """Each layer's parametrization and the weight below it."""
        found = []
        for owner, attribute in self._places(module):
            below: Any = owner.parametrizations[attribute]  # type: ignore[index]
            found.append((below[0], below.original.detach()))
        return found

    @torch.no_grad()
    def _set_offset(self, module: nn.Module, sparsity: float) -> None:
        """The smallest common offset at which so many weights are zero; more are with a larger one."""
        layers = self._layers(module)
        sizes = [weight.abs() for _, weight in layers]
        wanted = math.ceil(sparsity * sum(size.numel() for size in sizes) - 1e-6)

        def zeros(offset: float) -> int:
            pairs = zip(layers, sizes, strict=True)
            return sum(int((size <= p.at(p.offset.new_tensor(offset))).sum()) for (p, _), size in pairs)

        low, high = _LOWEST, _HIGHEST
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if zeros(middle) >= wanted else (middle, high)
        for threshold, _ in layers:
            threshold.offset.fill_(high)
