"""Learned ranks: soft thresholds between the factors of weights, which become smaller (Kusupati et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunecli.checkpoint.journal import Journal, factors_of
from prunecli.errors import InputError
from prunecli.methods.control import Ramp, smallest
from prunecli.methods.hook import Course, Hook
from prunecli.methods.thresholds import HIGHEST, LOWEST, SoftThreshold, life, press, soft
from prunecli.recipe.schema import Budget
from prunecli.surgery.factors import can_factorise, factorise, pays

if TYPE_CHECKING:
    from prunecli.methods.str import SoftThresholds


class Factors(nn.Module):
    """``W = A S(m) B``: a weight while its rank is learned.

    Attributes:
        wide, scale, narrow: A (out, k), m (k,), B (k, in); the singular value decomposition of the weight at first.
        threshold: one s for the weight.
    """

    def __init__(self, weight: Tensor, s: float) -> None:
        super().__init__()
        left, values, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        self.wide, self.narrow = (nn.Parameter(part.to(weight.dtype)) for part in (left, right))
        self.threshold = SoftThreshold(s, weight, "exp")
        self.scale = nn.Parameter(values.to(weight.dtype) + self.threshold.threshold.detach())

    @property
    def values(self) -> Tensor:
        """S(m), (k,)."""
        return soft(self.scale, self.threshold.threshold)

    @property
    def rank(self) -> int:
        """How many values are not zero; never less than 1."""
        return max(1, int(torch.count_nonzero(self.values.detach())))

    @property
    def product(self) -> Tensor:
        """W, (out, in)."""
        return (self.wide * self.values) @ self.narrow

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in), as a parametrization of a weight that is not read any more."""
        del weight
        return self.product

    @torch.no_grad()
    def press(self, offset: float) -> None:
        """Make zero what a raised threshold catches, the largest value excepted: without one a layer is silent."""
        largest = self.scale.abs().argmax()
        spared = self.scale[largest].clone()
        press(self.scale.data, self.threshold, offset)
        self.scale[largest] = spared

    @torch.no_grad()
    def shared(self) -> tuple[Tensor, Tensor]:
        """B (rank, in) and A (out, rank), each with the root of the values that are left."""
        kept = self.values != 0 if self.values.any() else torch.arange(len(self.scale), device=self.scale.device) == 0
        values = self.values[kept]
        root = values.abs().sqrt()
        return root[:, None] * self.narrow[kept], self.wide[:, kept] * root * values.sign()


class FactorisedLinear(nn.Module):
    """A linear layer that multiplies its inputs by one factor after the other, which is less work."""

    def __init__(self, layer: nn.Linear, factors: Factors) -> None:
        super().__init__()
        self.factors = factors
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        """(out, in), for a module around it that reads the weight itself, as `nn.TransformerEncoderLayer` does."""
        return self.factors.product

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        inner = nn.functional.linear(x, self.factors.narrow) * self.factors.values
        return nn.functional.linear(inner, self.factors.wide, self.bias)


class LearnedRanks(Hook):
    """Thresholds between the factors of the weights of linear and recurrent layers, steered to a number of parameters.

    Args:
        method: the fields of the recipe.
        weights: names of weights that may change; those of other layers do not.
        budget: params that may be left of the whole model.
    """

    keeps_best = False
    settles = True

    def __init__(self, method: SoftThresholds, weights: Sequence[str], budget: Budget) -> None:
        self._method = method
        self._names = list(weights)
        self._budget = budget
        self._now: dict[str, float] = {}

    def attach(self, module: nn.Module, course: Course) -> None:
        """Factorise; the products are the weights, so that no output changes.

        Raises:
            InputError: there is no such layer, or they are too small a part of the model.
        """
        weights = {name: module.get_parameter(name) for name in self._names if can_factorise(module, name)}
        self._whole = sum(p.numel() for p in module.parameters())
        self._rest = self._whole - sum(weight.numel() for weight in weights.values())
        amount = self._budget.amount
        self._target = amount if amount <= 1 else amount / self._whole
        least = (self._rest + sum(sum(weight.shape) for weight in weights.values())) / self._whole
        if not weights or least > self._target:
            raise InputError(
                f"the params budget {self._target:.2%} cannot be met: linear and recurrent layers of rank 1 leave "
                f"{least:.2%}",
                hint=f"keep {least:.2%} or more, or structure: weight",
            )
        self._linear: dict[str, nn.Linear] = {}
        for name, weight in weights.items():
            path, _, attribute = name.rpartition(".")
            layer, factors = module.get_submodule(path), Factors(weight, self._method.s_init)
            if isinstance(layer, nn.Linear):
                self._linear[name] = layer
                module.set_submodule(path, FactorisedLinear(layer, factors))
            else:
                weight.requires_grad_(False)
                parametrize.register_parametrization(layer, attribute, factors, unsafe=True)
        self._factorised = list(weights)
        self._ramp = Ramp(1 - self._target, self._method.ramp, course.steps)

    def predictions(self) -> Mapping[str, float]:
        """The share of the parameters that is left."""
        return {"params": self._target}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Follow the schedule."""
        if self._ramp.due(step):
            self._now = {"params": self._press(module, 1 - self._ramp.at(step))}

    def figures(self) -> Mapping[str, float]:
        """The share of the parameters that is left."""
        return self._now

    @torch.no_grad()
    def finalize(self, module: nn.Module) -> None:
        """Factors of the ranks that are left where that makes them smaller; one weight where it does not."""
        self._left = self._press(module, self._target)
        self._ranks: dict[str, int] = {}
        for name, factors in self._factors(module).items():
            self._restore(module, name)
            weight = module.get_parameter(name)
            if not pays(weight, factors.rank):
                weight.copy_(factors(weight))
                continue
            self._ranks[name] = factors.rank
            factorise(module, {name: factors.rank})
            for place, values in zip(factors_of(name), factors.shared(), strict=True):
                module.get_parameter(place).copy_(values)
            if name in self._linear and self._linear[name].bias is not None:
                module.get_parameter(f"{name.removesuffix('weight')}1.bias").copy_(self._linear[name].bias)

    def _factors(self, module: nn.Module) -> dict[str, Factors]:
        found = {}
        for name in self._factorised:
            path, _, attribute = name.rpartition(".")
            layer: Any = module.get_submodule(path)
            found[name] = layer.factors if name in self._linear else layer.parametrizations[attribute][0]
        return found

    def _restore(self, module: nn.Module, name: str) -> None:
        """Put the layer back as it was."""
        path, _, attribute = name.rpartition(".")
        stand_in = module.get_submodule(path)
        if isinstance(stand_in, FactorisedLinear):
            self._linear[name].bias = stand_in.bias
            module.set_submodule(path, self._linear[name])
        else:
            parametrize.remove_parametrizations(stand_in, attribute, leave_parametrized=True)

    def outcomes(self) -> Mapping[str, float]:
        """The share of the parameters that is left."""
        return {"params": self._left}

    def by_layer(self) -> Mapping[str, Mapping[str, float]]:
        """The ranks."""
        return {factors_of(name)[1]: {"rank": float(rank)} for name, rank in self._ranks.items()}

    @property
    def journal(self) -> Journal:
        """The weights that are factors now."""
        return Journal(ranks=self._ranks)

    @torch.no_grad()
    def _press(self, module: nn.Module, target: float) -> float:
        """Raise all thresholds by one offset until at most this share of the parameters is left; returns the share."""
        every = list(self._factors(module).values())

        def left(offset: float) -> float:
            return (self._rest + sum(_size(factors, offset) for factors in every)) / self._whole

        offset = 0.0 if left(0.0) <= target else smallest(lambda o: left(o) <= target, 0.0, HIGHEST - LOWEST)
        for factors in every:
            factors.press(offset)
        return left(0.0)


def _size(factors: Factors, offset: float) -> int:
    """How many parameters a raised threshold leaves of a weight."""
    rank = max(1, int((life(factors.scale, factors.threshold) > offset).sum()))
    wide, narrow = factors.wide.shape[0], factors.narrow.shape[1]
    return min(rank * (wide + narrow), wide * narrow)
