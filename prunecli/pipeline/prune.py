"""Prune: what is zero goes for free, then the method meets the budget, and each step is proven."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import Journal
from prunecli.checkpoint.write import check_output
from prunecli.cost.budget import Search
from prunecli.cost.count import Polynomial, flops, params
from prunecli.errors import InputError, NothingRemoved
from prunecli.facts import BudgetFacts, CutFacts, Figures, PruneFacts, Verified
from prunecli.graph.channels import Channels, trace
from prunecli.graph.tape import Example
from prunecli.methods.base import Method, select
from prunecli.model import DEFAULT, Model, Opening, open_model
from prunecli.pipeline.container import container, write
from prunecli.pipeline.evaluation import data_for, evaluated, real_example
from prunecli.pipeline.figures import figures, source_bytes, tensor_bytes
from prunecli.recipe.schema import Budget, Recipe
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.probe import settle
from prunecli.surgery.strip import Stripped, strip
from prunecli.surgery.verify import random_example, verify
from prunecli.train.data import Data
from prunecli.train.evaluate import accuracy
from prunecli.train.loop import KeepZeros, Report, Trainer, ignore
from prunecli.units import human, percent


@dataclass(frozen=True)
class _Result:
    """A model on its way: what was done to it so far, in float64."""

    module: nn.Module
    journal: Journal
    verified: Verified
    removed: int
    budget: BudgetFacts | None = None


def prune(
    recipe: Recipe,
    source: str,
    output: Path | None,
    opening: Opening = DEFAULT,
    *,
    report: Report = ignore,
) -> PruneFacts:
    """Apply a recipe to a model and write the smaller one.

    The recipe's data measures accuracy, proves equality on real images, and trains where the recipe says so.

    Args:
        recipe: validated.
        source: MODEL as on the command line.
        output: where the result goes; None decides and counts, but trains and writes nothing.
        opening: how to open the model; the recipe fills what it leaves open.
        report: progress of training.

    Raises:
        InputError: the model, the data, the budget or the output cannot be used.
        OutcomeError: nothing was removed, or the smaller model is not equal.
    """
    started = time.monotonic()
    method = _method(recipe)
    opened = open_model(source, opening.completed(recipe.arch, recipe.input_shape))
    if output is not None:
        check_output(output, *([opened.path] if opened.path else []))
    images = None if recipe.data is None else data_for(opened, recipe.data)
    if _trains(recipe) and images is None:
        raise InputError("the recipe trains, but no data is given", hint="data: in the recipe, or --data")
    before = figures(opened, opened.module, source_bytes(opened), _accuracy(opened.module, images))
    result = _surgery(opened, recipe, method, images)
    _insist_on_change(result, before, opened)
    final = opened.after(_restore_dtypes(result.module, opened.module), result.journal)
    pruned, after = None, _figures(final, images)
    if _trains(recipe) and images is not None and output is not None:
        pruned, final = after, _trained(final, opened, recipe, images, report)
        after = _figures(final, images)
    if output is not None:
        evaluation = evaluated(recipe.data, before.accuracy, after.accuracy)
        metadata = container(
            final, recipe=recipe.resolved(), verified=result.verified, budget=result.budget, evaluation=evaluation
        )
        write(output, final, opened, metadata)
        after = replace(after, bytes=output.stat().st_size)
    return PruneFacts(
        model=opened.source,
        arch=None if opened.arch is None else str(opened.arch),
        method=method.name,
        before=before,
        pruned=pruned,
        after=after,
        removed_channels=result.removed,
        verified=result.verified,
        budget=result.budget,
        output=None if output is None else str(output),
        seconds=round(time.monotonic() - started, 3),
        cuts=_cuts(opened, final),
        notes=[*opened.notes, *_disagreement(result.budget, before, after)],
    )


def _trains(recipe: Recipe) -> bool:
    return recipe.train is not None and recipe.train.epochs > 0


def _figures(model: Model, data: Data | None) -> Figures:
    return figures(model, model.module, tensor_bytes(model.module), _accuracy(model.module, data))


def _trained(model: Model, opened: Model, recipe: Recipe, data: Data, report: Report) -> Model:
    assert recipe.train is not None
    teacher = opened.module if recipe.train.distill else None
    hooks = [KeepZeros(model.module)]
    trainer = Trainer(data, recipe.train, recipe.seed, teacher, hooks, report=report)
    return replace(model, module=trainer.fit(model.module).module)


def _disagreement(budget: BudgetFacts | None, before: Figures, after: Figures) -> list[str]:
    """fvcore has the last word on FLOPs; where it counts otherwise than the solver did, say so."""
    if budget is None or budget.unit != "flops" or not before.flops or after.flops is None:
        return []
    measured = after.flops / before.flops
    if abs(measured - budget.met) < 1e-9:
        return []
    note = f"fvcore counts {percent(measured)} of the FLOPs, the solver, which knows more ops, {percent(budget.met)}"
    return [note]


def _method(recipe: Recipe) -> Method:
    if not isinstance(recipe.method, Method):
        raise InputError("the recipe names no method", hint="method: {name: magnitude}")
    return recipe.method


def _accuracy(module: nn.Module, data: Data | None) -> float | None:
    return None if data is None else accuracy(module, data.test)


def _surgery(opened: Model, recipe: Recipe, method: Method, data: Data | None) -> _Result:
    """All that happens to the weights, in float64, and the proof of each step."""
    wide = copy.deepcopy(opened.module).double()
    example = opened.example.to(dtype=torch.float64)
    tests = [random_example(example, recipe.seed)]
    if data is not None:
        tests.append(real_example(opened, data).to(dtype=torch.float64))
    step = {"channel": _channels, "weight": _weights, "none": _zeros}[method.structure]
    return step(_Case(opened, wide, example, tests, recipe, method))


@dataclass(frozen=True)
class _Case:
    """Everything a step needs."""

    opened: Model
    module: nn.Module
    example: Example
    tests: Sequence[Example]
    recipe: Recipe
    method: Method

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
        return stripped, verify(module, stripped.module, self.tests)


def _zeros(case: _Case) -> _Result:
    stripped, verified = case.strip(case.module)
    return _Result(stripped.module, stripped.journal, verified, stripped.removed)


def _weights(case: _Case) -> _Result:
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


def _channels(case: _Case) -> _Result:
    """Strip first, then remove the channels of least score until the budget is met."""
    budget = _budget(case.recipe)
    full = _cost(case.module, trace(case.module, case.example), budget)
    whole = full(np.ones(full.widths.shape[1], dtype=np.bool_))
    limit = _limit(budget, whole)
    stripped, free = case.strip(case.module)
    channels = settle(stripped.module, case.example, case.exclude(trace(stripped.module, case.example)))
    if all(group.frozen for group in channels.groups):
        raise InputError(
            "no prunable channel: every group is frozen", hint="prunecli analyze --why LAYER tells the reason"
        )
    cost = _cost(stripped.module, channels, budget)
    scores = case.method.channel_scores(stripped.module, channels, case.recipe.seed)
    while True:
        search = Search(channels, scores, cost, limit, case.method.min_channels, budget.unit, whole)
        removed = search.solve(case.recipe.strip.round_to)
        settled = settle(stripped.module, case.example, channels, removed)
        if settled is channels:
            break
        channels = settled
    smaller, journal = cut(stripped.module, channels, removed)
    proof = verify(masked(stripped.module, channels, removed), smaller, case.tests)
    met = cost(~removed) / whole
    return _Result(
        smaller,
        stripped.journal.then(journal),
        _worse(free, proof),
        stripped.removed + int(removed.sum()),
        _budget_facts(budget, met, whole),
    )


def _budget(recipe: Recipe) -> Budget:
    assert recipe.budget is not None  # the schema checked it
    return recipe.budget


def _cost(module: nn.Module, channels: Channels, budget: Budget) -> Polynomial:
    """FLOPs, all parameters, or the weights that sparsity is counted over."""
    if budget.unit == "flops":
        return flops(channels)
    names = [n for n, p in module.named_parameters() if budget.unit == "params" or p.ndim > 1]
    return params(channels, names)


def _limit(budget: Budget, whole: int) -> float:
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


def _insist_on_change(result: _Result, before: Figures, opened: Model) -> None:
    """Zeroed weights are a change even where no channel could go."""
    if result.removed:
        return
    zeroed = sum(int((p == 0).sum()) for p in result.module.parameters())
    if zeroed > before.params - before.nonzero:
        return
    budget = result.budget
    reason = "there is nothing that provably does not matter"
    if budget is not None:
        reason = f"the {budget.unit} budget {percent(budget.asked)} is met already ({percent(budget.met)})"
    raise NothingRemoved(
        f"nothing was removed from {opened.source} ({human(before.params)} params): {reason}; nothing was written",
        hint="prunecli analyze shows the zeros and the frozen groups",
    )


def _restore_dtypes(module: nn.Module, original: nn.Module) -> nn.Module:
    """Back from float64 to the dtypes of the checkpoint; what strip added takes that of its layer."""
    dtypes = {name: tensor.dtype for name, tensor in original.state_dict().items()}
    for name, tensor in module.state_dict(keep_vars=True).items():
        layer = name.rpartition(".")[0]
        tensor.data = tensor.data.to(dtypes.get(name, dtypes.get(f"{layer}.weight", tensor.dtype)))
    return module


def _cuts(opened: Model, final: Model) -> list[CutFacts]:
    """Widths before and after, for each layer that lost outputs."""
    before = {n: p.shape[0] for n, p in opened.module.named_parameters() if p.ndim > 1}
    after = {n: p.shape[0] for n, p in final.module.named_parameters() if p.ndim > 1}
    return [CutFacts(n.rpartition(".")[0], before[n], after[n]) for n in before if after[n] != before[n]]
