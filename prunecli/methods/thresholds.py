"""Learned soft thresholds as parametrizations, and the control that makes them meet a sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import InputError
from prunecli.methods.control import Ramp
from prunecli.methods.hook import Course, Hook
from prunecli.methods.wrapping import bake, wrap

LOWEST, HIGHEST = -60.0, 20.0  # between these a sigmoid goes from 0 to 1
BELOW = 0.999  # of the threshold, so that rounding brings nothing back
AWAKE = -10.0  # from here on a threshold is large enough to make zeros


class _Soft(torch.autograd.Function):
    """Half the operations of the formula as it is written, and one tensor to remember: the result."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor) -> Tensor:
        result = weight.clamp(-threshold, threshold)
        torch.sub(weight, result, out=result)
        ctx.save_for_backward(result)
        ctx.shape = threshold.shape
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (result,) = ctx.saved_tensors
        signs = result.sign()
        signed = grads[0] * signs
        total = signed.sum()  # before it is written over
        return signed.mul_(signs), -total.reshape(ctx.shape)


def soft(weight: Tensor, threshold: Tensor) -> Tensor:
    """``sign(w) relu(|w| - t)``, with the paper's gradients for w and t (equations 5 and 6); t has one element."""
    result: Tensor = _Soft.apply(weight, threshold)
    return result


@dataclass(frozen=True)
class Link:
    """What makes a threshold of any number, and the way back."""

    of: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


LINKS = {
    # what is larger than 1 is out of a sigmoid's reach, and goes last, the largest at the very end
    "sigmoid": Link(torch.sigmoid, lambda size: size.clamp(max=1 - 1e-12).logit() + (size - 1).clamp(min=0)),
    "exp": Link(torch.exp, torch.log),
}


class SoftThreshold(nn.Module):
    """The parametrization of one weight.

    Attributes:
        s: learned, decays like a weight.
        link: g, a sigmoid, or exp where what is thresholded may be larger than 1 (section 4.3 of the paper).
    """

    def __init__(self, s: float, like: Tensor, link: str = "sigmoid") -> None:
        super().__init__()
        self.link = link
        self.s = nn.Parameter(torch.tensor(s, dtype=like.dtype, device=like.device))

    @property
    def threshold(self) -> Tensor:
        """``g(s)``."""
        return self.raised(0.0)

    def raised(self, offset: float) -> Tensor:
        """``g(s + offset)``."""
        return LINKS[self.link].of(self.s + offset)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses."""
        return soft(weight, self.threshold)


class Thresholds(Hook):
    """Soft thresholds on some weights of a model, steered by the decay of every s, or to a sparsity.

    Args:
        weights: names of the weights.
        sparsity: share of zeros among them at the end, met to the last weight from above; None leaves it to decay.
        s_init: of every layer.
        ramp: share of the run in which the sparsity rises, as ``1 - (1 - p)^3``.
    """

    keeps_best = False
    settles = True

    def __init__(self, weights: Sequence[str], sparsity: float | None, s_init: float, ramp: float) -> None:
        self._names = list(weights)
        self._sparsity = sparsity
        self._s_init = s_init
        self._share = ramp
        self._ramp = Ramp(sparsity or 0.0, ramp, 1)
        self._now: dict[str, float] = {}
        self._awake: float | None = None
        self._zeros = 0.0
        self._final: dict[str, float] = {}

    def attach(self, module: nn.Module, course: Course) -> None:
        """Insert the thresholds; weights grow by theirs, so that no output changes.

        Raises:
            InputError: by decay alone no threshold would wake up in this run.
        """
        self._ramp = Ramp(self._sparsity or 0.0, self._share, course.steps)
        self._awake = wake_up(course, self._s_init)
        if self._sparsity is None and self._awake is None:
            least = AWAKE * math.exp(decay_exponent(course))
            raise InputError(
                f"s_init {self._s_init:g} would not reach {AWAKE:g} in this run: nothing would become zero",
                hint=f"method.s_init above {least:.4g}, more train.weight_decay, or budget: {{sparsity: 0.9}}",
            )
        with torch.no_grad():
            for name in self._names:
                weight = module.get_parameter(name)
                wrapped = SoftThreshold(self._s_init, weight)
                weight.add_(weight.sign() * wrapped.threshold)
                wrap(module, name, wrapped)

    def predictions(self) -> Mapping[str, float]:
        """The share of the run after which decay alone has woken the thresholds, and the sparsity."""
        awake = {} if self._awake is None or self._sparsity is not None else {"wake-up": self._awake}
        return awake if self._sparsity is None else {**awake, "sparsity": self._sparsity}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Follow the schedule."""
        if not self._ramp.due(step):
            return
        if self._sparsity is not None:
            self._press(module, self._ramp.at(step))
        layers = self._layers(module)
        mean = sum(float(p.threshold.detach()) for p, _ in layers) / len(layers)
        self._now = {"sparsity": self._sparsity_of(layers), "threshold": mean}

    def figures(self) -> Mapping[str, float]:
        """Sparsity, and the mean threshold."""
        return self._now

    def finalize(self, module: nn.Module) -> None:
        """Meet the sparsity exactly and leave the weights as the layers used them."""
        offset = 0.0 if self._sparsity is None else self._press(module, self._sparsity)
        layers = self._layers(module)
        self._zeros = self._sparsity_of(layers)
        self._final = {n: float(p.raised(offset).detach()) for n, (p, _) in zip(self._names, layers, strict=True)}
        bake(module, self._names)

    def outcomes(self) -> Mapping[str, float]:
        """The sparsity of the weights."""
        return {"sparsity": self._zeros}

    def by_layer(self) -> Mapping[str, Mapping[str, float]]:
        """The threshold of each weight."""
        return {name: {"threshold": threshold} for name, threshold in self._final.items()}

    def _layers(self, module: nn.Module) -> list[tuple[SoftThreshold, Tensor]]:
        """Each layer's parametrization and the weight below it."""
        found = []
        for owner, _, attribute in (name.rpartition(".") for name in self._names):
            below: Any = module.get_submodule(owner).parametrizations[attribute]  # type: ignore[index]
            found.append((below[0], below.original.detach()))
        return found

    @torch.no_grad()
    def _sparsity_of(self, layers: list[tuple[SoftThreshold, Tensor]]) -> float:
        zeros = sum(int((weight.abs() <= p.threshold).sum()) for p, weight in layers)
        return zeros / sum(weight.numel() for _, weight in layers)

    @torch.no_grad()
    def _press(self, module: nn.Module, sparsity: float) -> float:
        """Raise all thresholds by one offset until so many weights are zero; then put the thresholds back.

        Weights that the raised ones have caught are scaled to lie below the learned ones, and stay zero; the others
        are not shrunk any further, since a short run has no time to win that back.

        Returns:
            The offset.
        """
        layers = self._layers(module)
        lives = torch.cat([life(weight, threshold).flatten() for threshold, weight in layers])
        wanted = math.ceil(sparsity * len(lives) - 1e-6)
        offset = max(0.0, float(lives.kthvalue(wanted).values)) if wanted else 0.0
        for threshold, weight in layers:
            press(weight, threshold, offset)
        return offset


@torch.no_grad()
def life(weight: Tensor, threshold: SoftThreshold) -> Tensor:
    """The offset at which each weight becomes zero, in float64: ``g^-1(|w|) - s``."""
    return LINKS[threshold.link].inverse(weight.abs().double()) - threshold.s.double()


@torch.no_grad()
def press(weight: Tensor, threshold: SoftThreshold, offset: float, among: Tensor | bool = True) -> None:
    """Put what a raised threshold catches, among some weights or all, below the learned one, in place."""
    caught, most = (life(weight, threshold) <= offset) & among, BELOW * threshold.threshold
    lowered = (weight * (most / threshold.raised(offset))).clamp(-most, most)
    weight.copy_(torch.where(caught, lowered, weight))


@torch.no_grad()
def lift(weight: Tensor, threshold: SoftThreshold, chosen: Tensor) -> None:
    """Put chosen weights above the threshold, in place."""
    least = threshold.threshold / BELOW
    sunk = chosen & (weight.abs() < least)
    weight.copy_(torch.where(sunk, torch.where(weight < 0, -least, least), weight))


def decay_exponent(course: Course) -> float:
    """By what power of e the decay alone shrinks a parameter: ``lambda sum(lr) / (1 - momentum)``."""
    return course.settings.weight_decay * sum(course.rates) / (1 - course.settings.momentum)


def wake_up(course: Course, s: float) -> float | None:
    """The share of the run after which decay has brought s up to `AWAKE`; None where it never does."""
    wanted = math.log(max(1.0, s / AWAKE))
    gone = 0.0
    for step, rate in enumerate(course.rates):
        if gone >= wanted:
            return step / course.steps
        gone += course.settings.weight_decay * rate / (1 - course.settings.momentum)
    return 1.0 if gone >= wanted else None
