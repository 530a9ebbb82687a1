"""What a recipe does to the weights: three small operations on a float64 copy, each proven as it is made.

none      strip: what provably does not matter goes
weight    the weights of least score become zero, then strip
channel   strip, then the channels of least score go until the budget is met
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.arrays import Bools, Floats
from prunecli.checkpoint.journal import TAPS, Journal
from prunecli.cost.allocation import allocate
from prunecli.cost.budget import Search
from prunecli.cost.latency import preferred_multiple
from prunecli.errors import InputError, VerificationError
from prunecli.facts import BudgetFacts, Verified
from prunecli.graph.channels import Channels, trace, written
from prunecli.graph.copying import copied
from prunecli.graph.examples import drawn
from prunecli.graph.tape import Example
from prunecli.graph.tensors import cast, named_tensors, weight_norms
from prunecli.methods.base import Evidence, Method, select
from prunecli.methods.widths import excluding
from prunecli.model import Model
from prunecli.pipeline.evaluation import evidence_of, real_example
from prunecli.pipeline.limits import Limit, Solution, Stage, confirmed, limit_for
from prunecli.pipeline.training import Training
from prunecli.recipe.schema import Budget, Recipe
from prunecli.surgery.apply import cut, masked
from prunecli.surgery.border import bordered
from prunecli.surgery.expand import expand
from prunecli.surgery.fold import fold_batchnorm
from prunecli.surgery.plan import repair
from prunecli.surgery.probe import Restrict, insist_on_free, settle, survey
from prunecli.surgery.strip import Stripped, strip
from prunecli.surgery.verify import verify, widest
from prunecli.train.data import Data


@dataclass(frozen=True)
class Operated:
    """The smaller model in float64, what was done to it, and the proof."""

    module: nn.Module
    journal: Journal
    verified: Verified | None
    removed: int
    budget: BudgetFacts | None = None

    def then(self, later: Operated) -> Operated:
        """Both as one: the later model and budget, the larger error."""
        proof = later.verified if self.verified is None else _worse(self.verified, later.verified)
        return replace(
            later, journal=self.journal.then(later.journal), verified=proof, removed=self.removed + later.removed
        )


def operate(
    opened: Model,
    recipe: Recipe,
    data: Data | None,
    *,
    reference: Model | None = None,
    progress: float = 1.0,
    trained: bool = False,
    training: Training | None = None,
) -> Operated:
    """Apply a method to a copy of the model.

    Args:
        opened: stays as it is.
        recipe: gives method, budget, rounding and seed.
        data: real images for the proof, beside random ones.
        reference: what the budget is a share of, where `opened` was pruned before.
        progress: how much of the way to the budget is gone after this step.
        trained: the method's training has made the zeros of `opened` already.
        training: for methods that train before they score.

    Raises:
        InputError: the budget is impossible, or nothing may be pruned.
        VerificationError: the smaller model does not compute what the masked one does.
    """
    case = replace(_case(opened, recipe, data), reference=reference or opened, progress=progress, training=training)
    made = "none" if trained else case.method.structure  # training has made the zeros
    result = OPERATIONS[made](case)
    return _expanded(case, result) if progress == 1 else result


def folded(opened: Model, recipe: Recipe, data: Data | None) -> Operated:
    """Batch norms of a copy of the model go into the layers before them.

    Raises:
        VerificationError: that changes what it computes.
    """
    case = _case(opened, recipe, data)
    return _proven(case, Operated(case.module, Journal(), None, 0), *fold_batchnorm(case.module, case.example))


def _case(opened: Model, recipe: Recipe, data: Data | None) -> _Case:
    wide, example = widest(opened.module, opened.example)
    tests = [drawn(wide, example, recipe.seed)]
    if data is not None:
        tests.append(real_example(opened, data))
    return _Case(opened, opened, wide, example, tests, recipe, 1.0, data, None)


@dataclass(frozen=True)
class _Case:
    """Everything a step needs."""

    opened: Model
    reference: Model
    module: nn.Module
    example: Example
    tests: Sequence[Example]
    recipe: Recipe
    progress: float
    data: Data | None
    training: Training | None

    @property
    def method(self) -> Method:
        """Of the recipe."""
        method: Method = self.recipe.method
        return method

    @property
    def budget(self) -> Budget:
        """Of the recipe; the schema checked that there is one."""
        assert self.recipe.budget is not None
        return self.recipe.budget

    @property
    def dtype(self) -> torch.dtype:
        """In which equality is shown."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float64)

    def evidence(self, module: nn.Module) -> Evidence:
        """What the method may look at: the model as it is now, in float64 only where the checkpoint is."""
        fit = None
        if self.training is not None:  # in its own dtype
            fit = self.training.keeping_zeros(restore_dtypes(copied(module), self.opened.module))
        shown, example = module, self.example
        if self.dtype is torch.float64 is not self.opened.dtype:  # passes over many images take a fifth of the time
            shown, example = cast(copied(module), torch.float32), example.to(dtype=torch.float32)
        return evidence_of(shown, example, self.recipe.seed, self.data, fit)

    @property
    def exclude(self) -> Restrict:
        """Freezes every group that an excluded module writes."""
        return excluding(self.opened.module, self.method.exclude)

    def limit(self, stripped: Stripped, channels: Channels) -> Limit:
        """Of the budget, on the stripped model."""
        stage = Stage(
            self.reference, self.opened, stripped.module, self.example, channels, stripped.journal, self.recipe
        )
        return limit_for(stage, self.progress)

    @property
    def fills_in(self) -> str:
        """`strip.expand`; but a cut to a budget leaves no constants, and gates take layers as they are."""
        fixed = self.method.structure == "channel" or self.opened.journal.gates
        return "off" if fixed else self.recipe.strip.expand

    def strip(self, module: nn.Module, *, to_any_width: bool = False) -> tuple[Stripped, Verified]:
        """What is zero goes, proven; of the groups of a convolution as much as kernels are fast at, or all of it."""

        def restrict(channels: Channels) -> Channels:
            return self.exclude(channels.of_any_width() if to_any_width else channels)

        stripped = strip(module, self.example, restrict, borders=self.fills_in != "off")
        return stripped, verify(module, stripped.module, self.tests, self.dtype)


def _zeros(case: _Case) -> Operated:
    """Strip what is there; where a method has trained for a budget, say what it reached."""
    budget = case.recipe.budget
    of_channels = budget is not None and budget.unit != "sparsity"
    stripped, verified = case.strip(case.module, to_any_width=of_channels)
    met = None
    if of_channels:
        met = _reached(case, stripped)
    elif budget is not None:
        met = BudgetFacts("sparsity", budget.amount, _sparsity(case))
    return Operated(stripped.module, stripped.journal, verified, stripped.removed, met)


def _sparsity(case: _Case) -> float:
    """Share of zeros among the prunable weights."""
    weights = prunable(case.module, case.example, case.method).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def _reached(case: _Case, stripped: Stripped) -> BudgetFacts:
    """What the stripped model costs."""
    channels = trace(stripped.module, case.example)
    limit = case.limit(stripped, channels)
    return limit.facts(limit.cost(np.ones(channels.count, dtype=np.bool_)))


def _weights(case: _Case) -> Operated:
    """Zero the weights of least score, then strip what died of it."""
    chosen = prunable(case.module, case.example, case.method)
    whole = prunable(case.reference.module, case.reference.example, case.method)
    total = sum(weight.numel() for weight in whole.values())
    gone = total - sum(weight.numel() for weight in chosen.values())
    scores = _shared_out(case, chosen, case.method.weight_scores(case.evidence(case.module), chosen))
    if case.recipe.budget is None or case.budget.unit == "layers":
        count = sum(int((score < 1).sum()) for score in scores.values())
        asked = (gone + count) / total
    else:
        asked = case.progress * case.budget.amount
        count = math.ceil(asked * total - 1e-6) - gone
    _zero_least(chosen, scores, count)
    zeros = gone + sum(int((weight == 0).sum()) for weight in chosen.values())
    stripped, verified = case.strip(case.module)
    met = BudgetFacts("sparsity", asked, zeros / total)
    return Operated(stripped.module, stripped.journal, verified, stripped.removed, met)


def _shared_out(case: _Case, weights: dict[str, Tensor], scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores as `budget.per_layer` says."""
    if case.recipe.budget is None or case.budget.per_layer == "global":
        return scores
    flat = {name: score.double().flatten().numpy() for name, score in scores.items()}
    layers = {name: {name.removesuffix(".weight"): tuple(weight.shape)} for name, weight in weights.items()}
    given = allocate(case.budget.per_layer, flat, layers)
    return {name: torch.from_numpy(given[name]).reshape(weights[name].shape) for name in given}


def prunable(module: nn.Module, example: Example, method: Method) -> dict[str, Tensor]:
    """Weights that sparsity is counted over: those with two or more dims, in modules that are not excluded.

    Scales of channels, (C, 1, 1), are none, nor is what `unprunable` names, nor the biases of a border.
    """
    names = [name for name, _ in module.named_modules() if name]
    excluded, normed = select(method.exclude, names), unprunable(module)
    biases = {f"{path}.{TAPS}" for path in bordered(module)}
    weights = {
        name: p.data
        for name, p in module.named_parameters()
        if _is_weight(name, p) and name not in normed | biases and name.rpartition(".")[0] not in excluded
    }
    chosen = method.prunable(module, example, list(weights))
    if not chosen:
        hint = "build the architecture without weight norm" if normed and not weights else "exclude fewer layers"
        raise InputError("no prunable weight is left", hint=hint)
    return {name: weights[name] for name in chosen}


def unprunable(module: nn.Module) -> set[str]:
    """The parts of weights with weight norm: a zero among them changes the norm, and with it all others."""
    return {name for magnitude, direction, _ in weight_norms(module) for name in (magnitude, direction)}


def _is_weight(name: str, parameter: Tensor) -> bool:
    dims = sum(size > 1 for size in parameter.shape)
    return parameter.is_floating_point() and parameter.ndim > 1 and (dims > 1 or name.endswith("weight"))


def _zero_least(weights: dict[str, Tensor], scores: dict[str, Tensor], count: int) -> None:
    """Zero exactly `count` weights, those that are zero already first; ties are broken by position."""
    flat = torch.cat([torch.where(weights[n] == 0, -torch.inf, scores[n].double()).flatten() for n in weights])
    going = torch.zeros(len(flat), dtype=torch.bool)
    going[flat.argsort(stable=True)[:count]] = True
    for weight, mask in zip(weights.values(), going.split([w.numel() for w in weights.values()]), strict=True):
        weight.masked_fill_(mask.reshape(weight.shape), 0)


def _channels(case: _Case) -> Operated:
    """Strip first, then remove the channels of least score until the budget is met."""
    stripped, free = case.strip(case.module)
    through = case.method.through_norms
    channels = survey(stripped.module, case.example, case.exclude, through_norms=through)
    insist_on_free(channels)
    limit = case.limit(stripped, channels)
    channels, removed, figure = _choose(case, stripped.module, channels, limit)
    smaller, journal = cut(stripped.module, channels, removed)
    proof = verify(masked(stripped.module, channels, removed), smaller, case.tests, case.dtype)
    return Operated(
        smaller,
        stripped.journal.then(journal),
        _worse(free, proof),
        stripped.removed + int(removed.sum()),
        limit.facts(figure),
    )


def _choose(case: _Case, module: nn.Module, channels: Channels, limit: Limit) -> tuple[Channels, Bools, float]:
    """The channels that go, and what is left then; a choice that would break the model is made again without it."""
    scores = _allocated(case, module, channels)
    while True:
        try:
            return channels, *_solve(case, module, channels, scores, limit)
        except _Breaks as found:
            channels = found.settled


class _Breaks(Exception):
    """A choice would break the model.

    Attributes:
        settled: the channels with what is to blame frozen.
    """

    def __init__(self, settled: Channels) -> None:
        self.settled = settled


def _allocated(case: _Case, module: nn.Module, channels: Channels) -> Floats:
    """Scores as `budget.per_layer` says, by channel group."""
    scores = case.method.channel_scores(case.evidence(module), channels)
    if case.budget.per_layer == "global":
        return scores
    live = {group.name: group for group in channels.groups if not group.frozen}
    layers = {name: written(group, channels) for name, group in live.items()}
    given = allocate(case.budget.per_layer, {name: scores[group.channels] for name, group in live.items()}, layers)
    result = scores.copy()
    for name, group in live.items():
        result[group.channels] = given[name]
    return result


def _solve(case: _Case, module: nn.Module, channels: Channels, scores: Floats, limit: Limit) -> tuple[Bools, float]:
    """What goes so that the limit holds, and the figure that it is about.

    Raises:
        _Breaks: it may not go.
    """

    def sound(removed: Bools) -> Bools:
        settled = settle(module, case.example, channels, removed)
        if settled is not channels:
            raise _Breaks(settled)
        return removed

    if limit.unit == "layers":
        order = np.argsort(-scores, kind="stable")
        removed = sound(repair(channels, scores < 1, order, case.method.min_channels))
        return removed, limit.cost(~removed)
    wanted = case.recipe.strip.round_to
    multiple = preferred_multiple(case.budget.device) if wanted == "auto" else wanted

    def search(amount: float) -> Search:
        least = case.method.min_channels
        return Search(channels, scores, limit.cost, amount, least, limit.unit, limit.whole, limit.show)

    def finished(amount: float) -> Solution:
        removed = sound(search(max(amount, search(0).least())).solve(multiple))
        smaller, journal = cut(module, channels, removed)
        return Solution(removed, restore_dtypes(smaller, case.opened.module), journal)

    if limit.measure is not None:
        return confirmed(limit, finished)
    removed = sound(search(limit.amount).solve(multiple))
    return removed, limit.cost(~removed)


def _worse(first: Verified, second: Verified | None) -> Verified:
    """The larger error of two proofs."""
    if second is None:
        return first
    return replace(
        second,
        max_abs_error=max(first.max_abs_error, second.max_abs_error),
        max_rel_error=max(first.max_rel_error, second.max_rel_error),
    )


def _expanded(case: _Case, result: Operated) -> Operated:
    """What is dead in a single layer though its channels stay."""
    if case.fills_in == "off":
        return result
    return _proven(case, result, *expand(result.module, case.example, case.fills_in))


def _proven(case: _Case, before: Operated, module: nn.Module, journal: Journal) -> Operated:
    """One more step on a model, with its proof; no step where the journal is empty."""
    if journal == Journal():
        return before
    proof = verify(before.module, module, case.tests, case.dtype)
    return before.then(Operated(module, journal, proof, journal.filled_in, before.budget))


OPERATIONS: dict[str, Callable[[_Case], Operated]] = {"none": _zeros, "weight": _weights, "channel": _channels}


def restore_dtypes(module: nn.Module, original: nn.Module) -> nn.Module:
    """Back from float64 to the dtypes of the checkpoint; what strip added takes that of its layer.

    Raises:
        VerificationError: a folded number is too large for the checkpoint's dtype.
    """
    dtypes = {name: tensor.dtype for name, tensor in named_tensors(original)}
    for name, tensor in named_tensors(module):  # buffers that no file holds included
        layer = name.rpartition(".")[0]
        new = dtypes.get(f"{layer}.weight", tensor.dtype) if tensor.is_floating_point() else tensor.dtype
        narrow = tensor.data.to(dtypes.get(name, new))
        if bool((torch.isfinite(tensor) & ~torch.isfinite(narrow)).any()):
            raise VerificationError(f"{name} does not fit into {narrow.dtype}; nothing was written")
        tensor.data = narrow
    return module
