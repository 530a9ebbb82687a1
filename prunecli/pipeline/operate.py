"""What a recipe does to the weights: three small operations on a float64 copy, each proven as it is made.

none      strip: what provably does not matter goes
weight    the weights of least score become zero, then strip
channel   strip, then the channels of least score go until the budget is met
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import Journal
from prunecli.cost.budget import Search
from prunecli.cost.count import Polynomial, flops, params
from prunecli.errors import InputError, VerificationError
from prunecli.facts import BudgetFacts, Verified
from prunecli.graph.channels import Bools, Channels, trace
from prunecli.graph.tape import Example, ForwardError, record
from prunecli.methods.base import Method, select
from prunecli.model import Model
from prunecli.pipeline.evaluation import real_example
from prunecli.recipe.schema import Budget, Recipe
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.probe import settle
from prunecli.surgery.strip import Stripped, strip
from prunecli.surgery.verify import random_example, verify
from prunecli.train.data import Data


@dataclass(frozen=True)
class Operated:
    """The smaller model in float64, what was done to it, and the proof."""

    module: nn.Module
    journal: Journal
    verified: Verified
    removed: int
    budget: BudgetFacts | None = None


def operate(opened: Model, recipe: Recipe, method: Method, data: Data | None) -> Operated:
    """Apply a method to a copy of the model.

    Args:
        opened: stays as it is.
        recipe: gives budget, rounding and seed.
        method: of the recipe.
        data: real images for the proof, beside random ones.

    Raises:
        InputError: the budget is impossible, or nothing may be pruned.
        VerificationError: the smaller model does not compute what the masked one does.
    """
    wide, example = _widest(opened)
    tests = [random_example(example, recipe.seed)]
    if data is not None:
        tests.append(real_example(opened, data))
    return OPERATIONS[method.structure](_Case(opened, wide, example, tests, recipe, method))


@dataclass(frozen=True)
class _Case:
    """Everything a step needs."""

    opened: Model
    module: nn.Module
    example: Example
    tests: Sequence[Example]
    recipe: Recipe
    method: Method

    @property
    def dtype(self) -> torch.dtype:
        """In which equality is shown."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float64)

    def exclude(self, channels: Channels) -> Channels:
        """Freeze every group that a chosen module writes."""
        names = [name for name, _ in self.opened.module.named_modules() if name]
        chosen = select(self.method.exclude, names)
        groups = {
            group.name: "excluded by the recipe"
            for group in channels.groups
            if any(channels.slots[s].name.rpartition(".")[0] in chosen for s in group.slots)
        }
        return channels.freeze(groups) if groups else channels

    def strip(self, module: nn.Module) -> tuple[Stripped, Verified]:
        """What is zero goes, proven."""
        stripped = strip(module, self.example, self.exclude)
        return stripped, verify(module, stripped.module, self.tests, self.dtype)


def _zeros(case: _Case) -> Operated:
    stripped, verified = case.strip(case.module)
    return Operated(stripped.module, stripped.journal, verified, stripped.removed)


def _weights(case: _Case) -> Operated:
    """Zero the weights of least score, then strip what died of it."""
    budget = _budget(case.recipe)
    chosen = _prunable(case.module, case.method)
    total = sum(weight.numel() for weight in chosen.values())
    scores = case.method.weight_scores(chosen, case.recipe.seed)
    count = round(budget.amount * total)
    _zero_least(chosen, scores, count)
    zeros = sum(int((weight == 0).sum()) for weight in chosen.values())
    result = _zeros(case)
    return replace(result, budget=BudgetFacts("sparsity", budget.amount, zeros / total))


def _prunable(module: nn.Module, method: Method) -> dict[str, Tensor]:
    """Weights that sparsity is counted over: those with two or more dims, in modules that are not excluded."""
    names = [name for name, _ in module.named_modules() if name]
    excluded = select(method.exclude, names)
    chosen = {
        name: p.data
        for name, p in module.named_parameters()
        if p.ndim > 1 and p.is_floating_point() and name.rpartition(".")[0] not in excluded
    }
    if not chosen:
        raise InputError("no prunable weight is left", hint="exclude fewer layers")
    return chosen


def _zero_least(weights: dict[str, Tensor], scores: dict[str, Tensor], count: int) -> None:
    """Zero exactly `count` weights, those that are zero already first; ties are broken by position."""
    flat = torch.cat([torch.where(weights[n] == 0, -torch.inf, scores[n].double()).flatten() for n in weights])
    going = torch.zeros(len(flat), dtype=torch.bool)
    going[flat.argsort(stable=True)[:count]] = True
    for weight, mask in zip(weights.values(), going.split([w.numel() for w in weights.values()]), strict=True):
        weight.masked_fill_(mask.reshape(weight.shape), 0)


def _channels(case: _Case) -> Operated:
    """Strip first, then remove the channels of least score until the budget is met."""
    budget = _budget(case.recipe)
    full = _cost(case.module, trace(case.module, case.example), budget)
    whole = full(np.ones(full.widths.shape[1], dtype=np.bool_))
    limit = _amount(budget, whole)
    stripped, free = case.strip(case.module)
    channels = settle(stripped.module, case.example, case.exclude(trace(stripped.module, case.example)))
    if all(group.frozen for group in channels.groups):
        raise InputError(
            "no prunable channel: every group is frozen", hint="prunecli analyze --why LAYER tells the reason"
        )
    cost = _cost(stripped.module, channels, budget)
    channels, removed = _choose(case, stripped.module, channels, _Limit(budget.unit, limit, whole, cost))
    smaller, journal = cut(stripped.module, channels, removed)
    proof = verify(masked(stripped.module, channels, removed), smaller, case.tests, case.dtype)
    met = cost(~removed) / whole
    return Operated(
        smaller,
        stripped.journal.then(journal),
        _worse(free, proof),
        stripped.removed + int(removed.sum()),
        _budget_facts(budget, met, whole),
    )


@dataclass(frozen=True)
class _Limit:
    """A budget in absolute terms: `cost` of what stays may be at most `amount`, of `whole` before."""

    unit: str
    amount: float
    whole: int
    cost: Polynomial


def _choose(case: _Case, module: nn.Module, channels: Channels, limit: _Limit) -> tuple[Channels, Bools]:
    """The channels that go; a choice that would break the model is made again without what broke."""
    scores = case.method.channel_scores(module, channels, case.recipe.seed)
    while True:
        search = Search(channels, scores, limit.cost, limit.amount, case.method.min_channels, limit.unit, limit.whole)
        removed = search.solve(case.recipe.strip.round_to)
        settled = settle(module, case.example, channels, removed)
        if settled is channels:
            return channels, removed
        channels = settled


def _budget(recipe: Recipe) -> Budget:
    assert recipe.budget is not None  # the schema checked it
    return recipe.budget


def _cost(module: nn.Module, channels: Channels, budget: Budget) -> Polynomial:
    """FLOPs, all parameters, or the weights that sparsity is counted over."""
    if budget.unit == "flops":
        return flops(channels)
    names = [n for n, p in module.named_parameters() if budget.unit == "params" or p.ndim > 1]
    return params(channels, names)


def _amount(budget: Budget, whole: int) -> float:
    if budget.unit == "sparsity":
        return (1 - budget.amount) * whole
    return budget.amount * whole if budget.amount <= 1 else budget.amount


def _budget_facts(budget: Budget, met: float, whole: int) -> BudgetFacts:
    if budget.unit == "sparsity":
        return BudgetFacts("sparsity", budget.amount, 1 - met)
    return BudgetFacts(budget.unit, budget.amount if budget.amount <= 1 else budget.amount / whole, met)


def _worse(first: Verified, second: Verified) -> Verified:
    return replace(
        second,
        max_abs_error=max(first.max_abs_error, second.max_abs_error),
        max_rel_error=max(first.max_rel_error, second.max_rel_error),
    )


def _widest(opened: Model) -> tuple[nn.Module, Example]:
    """A copy in float64, or in its own dtype where it holds tensors that a conversion does not reach."""
    wide, example = copy.deepcopy(opened.module).double(), opened.example.to(dtype=torch.float64)
    try:
        record(wide, example)
    except ForwardError:
        return copy.deepcopy(opened.module), opened.example
    return wide, example


OPERATIONS: dict[str, Callable[[_Case], Operated]] = {"none": _zeros, "weight": _weights, "channel": _channels}


def restore_dtypes(module: nn.Module, original: nn.Module) -> nn.Module:
    """Back from float64 to the dtypes of the checkpoint; what strip added takes that of its layer.

    Raises:
        VerificationError: a folded number is too large for the checkpoint's dtype.
    """
    dtypes = {name: tensor.dtype for name, tensor in original.state_dict().items()}
    for name, tensor in module.state_dict(keep_vars=True).items():
        layer = name.rpartition(".")[0]
        narrow = tensor.data.to(dtypes.get(name, dtypes.get(f"{layer}.weight", tensor.dtype)))
        if bool((torch.isfinite(tensor) & ~torch.isfinite(narrow)).any()):
            raise VerificationError(f"{name} does not fit into {narrow.dtype}; nothing was written")
        tensor.data = narrow
    return module
