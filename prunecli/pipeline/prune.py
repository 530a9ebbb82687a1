"""Prune: what is zero goes for free, then the method meets the budget, and each step is proven."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from prunecli.checkpoint.write import check_container
from prunecli.errors import BudgetMissed, InputError
from prunecli.facts import BudgetFacts, CutFacts, Figures, PruneFacts
from prunecli.graph.channels import trace
from prunecli.methods.base import Method
from prunecli.model import DEFAULT, Model, Opening, Source, open_model
from prunecli.pipeline.container import Provenance, identity, origin, save
from prunecli.pipeline.evaluation import data_for, evaluated, known_accuracy
from prunecli.pipeline.extras import Extras
from prunecli.pipeline.figures import beside_the_weights, figures, weight_bytes
from prunecli.pipeline.operate import unprunable
from prunecli.pipeline.steps import Steps, Way, insist_on_change
from prunecli.pipeline.training import Training
from prunecli.recipe.schema import Recipe
from prunecli.train.data import Data
from prunecli.train.loop import Report, ignore
from prunecli.units import human, percent

TOLERANCE = 0.01  # by which a trained budget may be missed


def prune(
    recipe: Recipe,
    source: Source,
    output: str | Path | None,
    opening: Opening = DEFAULT,
    *,
    resume: bool = False,
    report: Report = ignore,
) -> PruneFacts:
    """Apply a recipe to a model and write the smaller one.

    The recipe's data measures accuracy, proves equality on real images, and trains where the recipe says so.

    Args:
        recipe: validated.
        source: MODEL as on the command line, or a module, which stays as it is.
        output: where the result goes; None decides and counts, but trains and writes nothing.
        opening: how to open the model; the recipe fills what it leaves open.
        resume: continue a run whose training was stopped.
        report: progress of training.

    Raises:
        InputError: the model, the data, the budget or the output cannot be used.
        OutcomeError: nothing was removed, the smaller model is not equal, or training missed the budget.
    """
    started, output = time.monotonic(), None if output is None else Path(output)
    method = _method(recipe)
    opened = open_model(source, opening.completed(recipe.arch, recipe.inputs))
    if output is not None:
        check_container(output, *([opened.path] if opened.path else []))
    images = None if recipe.data is None else data_for(opened, recipe.data)
    if _trains(recipe) and images is None:
        raise InputError("the recipe trains, but no data is given", hint="data: in the recipe, or --data")
    extras = Extras.prepared(recipe, opened, images)
    before = figures(opened, opened.module, weight_bytes(opened), known_accuracy(opened.module, images, recipe.device))
    training = None if output is None else _training(recipe, opened, images, output, resume, report)
    steps = Steps(opened, recipe, images, training)
    way = steps.run()
    result, final = way.done, way.model
    insist_on_change(result, final, opened)
    after = steps.figures(final)
    if output is not None:
        evaluation = evaluated(recipe.data, before.accuracy, after.accuracy)
        provenance = Provenance(recipe.resolved(), result.verified, result.budget, evaluation)
        after = replace(after, bytes=save(output, final, opened, provenance))
    written = output is not None
    facts = _facts(opened, extras.added_to(way, write=written), before, after, written=written)
    facts = replace(facts, notes=[*_left_out(recipe, opened), *beside_the_weights(opened), *facts.notes])
    if training is not None:
        facts = replace(facts, notes=[*training.notes, *facts.notes])
        training.forget()
    _insist_on_budget(facts.budget, output)
    place = None if output is None else str(output)
    return replace(facts, method=method.name, output=place, seconds=round(time.monotonic() - started, 3))


def _insist_on_budget(budget: BudgetFacts | None, output: Path | None) -> None:
    """A method that trains may miss what it was steered to; its work is kept, but it is no success."""
    if budget is None:
        return
    excess = budget.asked - budget.met if budget.unit == "sparsity" else budget.met - budget.asked
    if excess > TOLERANCE:
        kept = "" if output is None else f"; what came of it is in {output}"
        raise BudgetMissed(
            f"the {budget.unit} budget {percent(budget.asked)} was not met: {percent(budget.met)}{kept}",
            hint="more epochs, or a method that cuts without training, such as magnitude",
        )


def _facts(opened: Model, way: Way, before: Figures, after: Figures, *, written: bool) -> PruneFacts:
    """What came of the steps; the run fills in where and how long."""
    result, cuts = way.done, _cuts(opened, way.model)
    return PruneFacts(
        model=opened.source,
        arch=None if opened.arch is None else str(opened.arch),
        method="",
        before=before,
        pruned=way.pruned,
        after=after,
        removed_channels=sum(cut.before - cut.after for cut in cuts),
        verified=result.verified,
        budget=_met(result.budget, before, after, written=written),
        output=None,
        seconds=0.0,
        cuts=cuts,
        notes=[
            *opened.notes,
            *way.notes,
            *_undershot(result.budget),
            *_disagreement(result.budget, before, after, way),
        ],
        recovered=way.recovered,
        predicted=dict(way.predictions),
        found=dict(way.outcomes),
        layers={name: dict(facts) for name, facts in way.by_layer.items()},
    )


def _trains(recipe: Recipe) -> bool:
    return recipe.train is not None and recipe.train.epochs > 0


def _training(
    recipe: Recipe, opened: Model, images: Data | None, output: Path, resume: bool, report: Report
) -> Training:
    """The trainings of this run; their states belong to exactly this model and recipe."""
    teacher = opened.module if recipe.train is not None and recipe.train.distill else None
    known = identity(origin(opened), opened.arch, recipe.data, recipe.resolved())
    return Training(images, recipe.seed, teacher, output, known, resume, report)


def _met(budget: BudgetFacts | None, before: Figures, after: Figures, *, written: bool) -> BudgetFacts | None:
    """The size is known to the byte only when the file is there."""
    exact = written and budget is not None and budget.unit == "size"
    return replace(budget, met=after.bytes / before.bytes) if budget and exact else budget


def _left_out(recipe: Recipe, opened: Model) -> list[str]:
    """Weights that sparsity is not counted over."""
    if _method(recipe).structure != "weight":
        return []
    layers = len(unprunable(opened.module)) // 2
    numbers = sum(p.numel() for p in opened.module.parameters() if p.is_complex())
    normed = [f"{layers} layers with weight norm are left out: their weights are computed"] if layers else []
    return normed + ([f"{human(numbers)} complex weights are left out: only channels of them go"] if numbers else [])


def _undershot(budget: BudgetFacts | None) -> list[str]:
    """Less may be left than was asked for: widths are coarse, much was zero, or a training has silenced a layer."""
    if budget is None or budget.unit not in ("flops", "params", "size") or budget.asked - budget.met <= TOLERANCE:
        return []
    return [f"{percent(budget.met)} is left where the {budget.unit} budget asks for {percent(budget.asked)}"]


def _disagreement(budget: BudgetFacts | None, before: Figures, after: Figures, way: Way) -> list[str]:
    """The budget is met on training images, and as the solver counts; what else is measured is said as well."""
    if budget is None or budget.unit != "flops" or not before.flops or after.flops is None:
        return []
    measured = after.flops / before.flops
    if abs(measured - budget.met) < 1e-9:
        return []
    if way.model.journal.gates:
        who, whose = "the test images take, in the mean,", "the training images"
    elif way.done.journal.folded:
        who, whose = "with batch norms folded the model takes", "before that"
    else:
        who, whose = "fvcore counts", "the solver, which knows more ops,"
    return [f"{who} {percent(measured)} of the FLOPs, {whose} {percent(budget.met)}"]


def _method(recipe: Recipe) -> Method:
    if not isinstance(recipe.method, Method):
        raise InputError("the recipe names no method", hint="method: {name: magnitude}")
    return recipe.method


def _cuts(opened: Model, final: Model) -> list[CutFacts]:
    """Widths before and after, for each layer that lost outputs."""
    channels, after = trace(opened.module, opened.example), dict(final.module.named_parameters())
    found: dict[str, CutFacts] = {}
    for name, weight in opened.module.named_parameters():
        layer = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
        for dim in channels.written_dims(name) if weight.ndim > 1 else ():
            old, new = weight.shape[dim], after[final.journal.name_of(name)].shape[dim]
            if new != old:
                found.setdefault(layer, CutFacts(layer, old, new))
    return list(found.values())
