"""Learned soft thresholds on batch-norm scales: channels that go are exactly zero, their shift included (STR-BN)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunecli.arrays import Bools, Floats, Ints
from prunecli.checkpoint.journal import Kept
from prunecli.errors import InputError
from prunecli.graph.channels import Channels, Group
from prunecli.graph.copying import copied, moved
from prunecli.graph.tape import Example
from prunecli.methods.control import Ramp, smallest
from prunecli.methods.hook import Course, Hook
from prunecli.methods.thresholds import HIGHEST, LOWEST, SoftThreshold, life, lift, press
from prunecli.methods.widths import excluding, widths_of
from prunecli.recipe.schema import Budget
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import halves
from prunecli.surgery.strip import strip

if TYPE_CHECKING:
    from prunecli.methods.str import SoftThresholds

SMALLEST = 1e-6  # a scale below this could not carry its channel's shift


class ScaleThreshold(SoftThreshold):
    """On the scales of channels that may go; the others are left alone.

    Attributes:
        free: (channels,) those that may go.
    """

    free: Tensor

    def __init__(self, s: float, like: Tensor, free: Tensor) -> None:
        super().__init__(s, like, "exp")  # scales may be larger than 1
        self.register_buffer("free", free)

    def forward(self, weight: Tensor) -> Tensor:
        """The scales that the norm uses."""
        return torch.where(self.free, super().forward(weight), weight)


class ScaledShift(nn.Module):
    """``beta' = S(gamma, g(s)) b``: the parametrization of a shift that goes with its scale."""

    def __init__(self, threshold: ScaleThreshold, scale: nn.Parameter) -> None:
        super().__init__()
        self.threshold = threshold
        self.scale = scale

    def forward(self, ratio: Tensor) -> Tensor:
        """The shift that the norm uses, from the shift divided by the scale."""
        scale: Tensor = self.threshold(self.scale)
        return scale * ratio


class NormThresholds(Hook):
    """Soft thresholds on the scales of all batch norms behind channels that may go.

    Args:
        method: the fields of the recipe.
        budget: FLOPs or params that may be left.
    """

    keeps_best = False
    settles = True

    def __init__(self, method: SoftThresholds, budget: Budget) -> None:
        self._method = method
        self._budget = budget
        self._now: dict[str, float] = {}
        self._found: dict[str, float] = {}

    def attach(self, module: nn.Module, course: Course) -> None:
        """Insert the thresholds; scales grow by theirs, so that no output changes.

        Raises:
            InputError: no channel that may go has a batch norm, or the budget is impossible.
        """
        bare, fields = moved(module, "cpu").eval(), self._method
        exclude = excluding(bare, fields.exclude)

        def restrict(channels: Channels) -> Channels:
            return only_by_norms(bare, course.example, exclude(channels))

        self._widths = widths_of(bare, course.example, self._budget, restrict, fields.min_channels)
        self._places = {n: c for n, c in norms_of(bare, self._widths.channels).items() if self._widths.free[c].any()}
        if not self._places:
            raise InputError("no channel goes with its batch norms", hint="another method, such as magnitude or gumbel")
        for name, channels in self._places.items():
            self._insert(module.get_submodule(name), torch.from_numpy(self._widths.free[channels]))
        self._widths.choose(self._lives(module))  # an impossible budget is refused before anything is trained
        self._ramp = Ramp(1 - self._widths.target, fields.ramp, course.steps)

    @torch.no_grad()
    def _insert(self, norm: Any, free: Tensor) -> None:
        wrapped = ScaleThreshold(self._method.s_init, norm.weight, free.to(norm.weight.device))
        scale = torch.where(norm.weight.abs() < SMALLEST, SMALLEST, norm.weight)
        norm.bias.div_(scale)
        norm.weight.copy_(scale + scale.sign() * wrapped.threshold * wrapped.free)
        shift = ScaledShift(wrapped, norm.weight)
        parametrize.register_parametrization(norm, "weight", wrapped, unsafe=True)
        parametrize.register_parametrization(norm, "bias", shift, unsafe=True)

    def predictions(self) -> Mapping[str, float]:
        """The share that is left."""
        return {self._widths.unit: self._widths.target}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Follow the schedule: press what is to go, and let nothing else go.

        Thresholds that have risen too far are lowered, and scales of channels that stay are put above them, where they
        can learn: a scale below its threshold has no gradient.
        """
        if not self._ramp.due(step):
            return
        lives, target = self._lives(module), 1 - self._ramp.at(step)
        spared = self._spared(lives)
        offset = smallest(lambda offset: self._left(spared | (lives > offset)) <= target, LOWEST, HIGHEST)
        lower, kept = min(0.0, offset), spared | (lives > offset)
        for name, channels in self._places.items():
            norm: Any = module.get_submodule(name)
            scale, threshold = norm.parametrizations["weight"].original.data, self._threshold(module, name)
            threshold.s.data.add_(lower)
            # a small scale of a channel that others write as well stays: zeroing it would save nothing
            going = torch.from_numpy(~kept[channels]).to(scale.device)
            press(scale, threshold, offset - lower, threshold.free & going)
            lift(scale, threshold, threshold.free & ~going)
        self._now = {self._widths.unit: self._left(kept)}

    def _spared(self, lives: Floats) -> Bools:
        """(channels,) the fewest that must stay whatever the budget, those that live longest."""
        order = np.argsort(-lives, kind="stable")
        return self._widths.free & ~repair(self._widths.channels, self._widths.free, order, self._widths.min_channels)

    def figures(self) -> Mapping[str, float]:
        """The share that is left."""
        return self._now

    def finalize(self, module: nn.Module) -> None:
        """The budget is met to the channel; norms are plain again, as the layers used them."""
        removed = self._widths.choose(self._lives(module))
        for name, channels in self._places.items():
            norm: Any = module.get_submodule(name)
            for attribute in ("bias", "weight"):
                parametrize.remove_parametrizations(norm, attribute, leave_parametrized=True)
                with torch.no_grad():
                    getattr(norm, attribute)[torch.from_numpy(removed[channels]).to(norm.weight.device)] = 0
        self._found = {self._widths.unit: self._left(~removed)}

    def outcomes(self) -> Mapping[str, float]:
        """The share that is left."""
        return self._found

    def _left(self, kept: Any) -> float:
        return self._widths.left(np.where(self._widths.free, kept, True))

    def _threshold(self, module: nn.Module, name: str) -> ScaleThreshold:
        norm: Any = module.get_submodule(name)
        threshold: ScaleThreshold = norm.parametrizations["weight"][0]
        return threshold

    @torch.no_grad()
    def _lives(self, module: nn.Module) -> Floats:
        """(channels,) the common offset at which the last scale of a channel would be zero."""
        lives = np.full(self._widths.channels.count, -np.inf)
        for name, channels in self._places.items():
            norm: Any = module.get_submodule(name)
            last = life(norm.parametrizations["weight"].original, self._threshold(module, name))
            np.maximum.at(lives, channels, last.cpu().numpy())
        return np.where(np.isneginf(lives), np.inf, lives)  # without a scale a channel never dies


def norms_of(module: nn.Module, channels: Channels) -> dict[str, Ints]:
    """{batch norm: the channel of each of its scales}."""
    scales = {
        f"{name}.weight": name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    return {scales[slot.name]: slot.channels for slot in channels.slots if slot.name in scales}


def only_by_norms(module: nn.Module, example: Example, channels: Channels) -> Channels:
    """The same channels, with those frozen that do not go when their batch norms are zero: somebody else writes them.

    Every second channel is tried.
    """
    tried, removed = copied(module), halves(channels)
    for name, members in norms_of(module, channels).items():
        norm: Any = tried.get_submodule(name)
        for tensor in (norm.weight, norm.bias):
            tensor.data[torch.from_numpy(removed[members]).to(tensor.device)] = 0
    kept = strip(tried, example).journal.kept
    reason = "does not go with its batch norms"
    stay = {
        group.name: reason
        for group in channels.groups
        if not group.frozen and not _is_gone(group, channels, removed, kept)
    }
    return channels.freeze(stay) if stay else channels


def _is_gone(group: Group, channels: Channels, removed: Bools, kept: Kept) -> bool:
    slot = channels.slots[group.slots[0]]
    left = slot.channels[list(kept.get((slot.name, slot.dim), range(len(slot.channels))))]
    return bool(removed[group.channels].any()) and not removed[np.intersect1d(left, group.channels)].any()
