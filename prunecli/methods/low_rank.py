"""Learned ranks: soft thresholds between the factors of linear layers, which become smaller (Kusupati et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import Journal
from prunecli.errors import InputError
from prunecli.methods.control import Ramp, smallest
from prunecli.methods.hook import Course, Hook
from prunecli.methods.thresholds import HIGHEST, LOWEST, SoftThreshold, life, press, soft
from prunecli.recipe.schema import Budget
from prunecli.surgery.factors import factorise, pays

if TYPE_CHECKING:
    from prunecli.methods.str import SoftThresholds


class Factors(nn.Module):
    """``y = A S(m) B x + b``: a linear layer while its rank is learned.

    Attributes:
        wide, scale, narrow: A (out, k), m (k,), B (k, in); the singular value decomposition of the weight at first.
        threshold: one s for the layer.
    """

    def __init__(self, layer: nn.Linear, s: float) -> None:
        super().__init__()
        left, values, right = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
        weight = layer.weight
        self.wide, self.narrow = (nn.Parameter(part.to(weight.dtype)) for part in (left, right))
        self.threshold = SoftThreshold(s, weight, "exp")
        self.scale = nn.Parameter(values.to(weight.dtype) + self.threshold.threshold.detach())
        self.bias = layer.bias

    @property
    def values(self) -> Tensor:
        """S(m), (k,)."""
        return soft(self.scale, self.threshold.threshold)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return nn.functional.linear(nn.functional.linear(x, self.narrow) * self.values, self.wide, self.bias)

    @torch.no_grad()
    def product(self) -> Tensor:
        """(out, in)."""
        return (self.wide * self.values) @ self.narrow


class LearnedRanks(Hook):
    """Thresholds between the factors of every linear layer, steered to a number of parameters.

    Args:
        method: the fields of the recipe.
        weights: names of weights that may change; those of linear layers do.
        budget: params that may be left of the whole model.
    """

    keeps_best = False
    settles = True

    def __init__(self, method: SoftThresholds, weights: Sequence[str], budget: Budget) -> None:
        self._method = method
        self._names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
        self._budget = budget
        self._now: dict[str, float] = {}

    def attach(self, module: nn.Module, course: Course) -> None:
        """Factorise; the product is the weight, so that no output changes.

        Raises:
            InputError: there is no linear layer, or they are too small a part of the model.
        """
        layers = {name: module.get_submodule(name) for name in self._names}
        linear = {name: layer for name, layer in layers.items() if type(layer) is nn.Linear}
        self._whole = sum(p.numel() for p in module.parameters())
        self._rest = self._whole - sum(layer.weight.numel() for layer in linear.values())
        amount = self._budget.amount
        self._target = amount if amount <= 1 else amount / self._whole
        least = (self._rest + sum(layer.in_features + layer.out_features for layer in linear.values())) / self._whole
        if not linear or least > self._target:
            raise InputError(
                f"the params budget {self._target:.2%} cannot be met: linear layers of rank 1 leave {least:.2%}",
                hint=f"keep {least:.2%} or more, or structure: weight",
            )
        self._plain = linear
        self._layers = {name: Factors(layer, self._method.s_init) for name, layer in linear.items()}
        for name, factors in self._layers.items():
            module.set_submodule(name, factors)
        self._ramp = Ramp(1 - self._target, self._method.ramp, course.steps)

    def predictions(self) -> Mapping[str, float]:
        """The share of the parameters that is left."""
        return {"params": self._target}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Follow the schedule."""
        del module
        if self._ramp.due(step):
            self._press(1 - self._ramp.at(step))
            self._now = {"params": self._left(0.0)}

    def figures(self) -> Mapping[str, float]:
        """The share of the parameters that is left."""
        return self._now

    @torch.no_grad()
    def finalize(self, module: nn.Module) -> None:
        """Factors of the ranks that are left where that makes them smaller; one weight where it does not."""
        self._press(self._target)
        self._ranks: dict[str, int] = {}
        for name, factors in self._layers.items():
            layer, kept = self._plain[name], factors.values != 0
            module.set_submodule(name, layer)
            layer.bias = factors.bias
            if not pays(layer, int(kept.sum())):
                layer.weight.copy_(factors.product())
                continue
            self._ranks[name] = max(1, int(kept.sum()))
            kept = kept if bool(kept.any()) else torch.arange(len(kept), device=kept.device) == 0
            factorise(module, {name: self._ranks[name]})
            narrow, wide = module.get_submodule(f"{name}.0"), module.get_submodule(f"{name}.1")
            root = factors.values[kept].abs().sqrt()
            narrow.weight.copy_(root[:, None] * factors.narrow[kept])  # type: ignore[operator]
            wide.weight.copy_(factors.wide[:, kept] * root * factors.values[kept].sign())  # type: ignore[operator]
            if factors.bias is not None:
                wide.bias.copy_(factors.bias)  # type: ignore[operator]

    def outcomes(self) -> Mapping[str, float]:
        """The share of the parameters that is left."""
        return {"params": self._left(0.0)}

    def by_layer(self) -> Mapping[str, Mapping[str, float]]:
        """The ranks."""
        return {f"{name}.1.weight": {"rank": float(rank)} for name, rank in self._ranks.items()}

    @property
    def journal(self) -> Journal:
        """The layers that are factors now."""
        return Journal(ranks=self._ranks)

    @torch.no_grad()
    def _left(self, offset: float) -> float:
        """The share of all parameters that raised thresholds would leave."""
        left = self._rest
        for factors in self._layers.values():
            rank = max(1, int((life(factors.scale, factors.threshold) > offset).sum()))
            wide, narrow = factors.wide.shape[0], factors.narrow.shape[1]
            left += min(rank * (wide + narrow), wide * narrow)
        return left / self._whole

    def _press(self, target: float) -> None:
        reached = self._left(0.0) <= target
        offset = 0.0 if reached else smallest(lambda o: self._left(o) <= target, 0.0, HIGHEST - LOWEST)
        for factors in self._layers.values():
            press(factors.scale.data, factors.threshold, offset)
