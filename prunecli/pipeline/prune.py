"""Prune: what is zero goes for free, then the method meets the budget, and each step is proven."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from prunecli.checkpoint.journal import Journal
from prunecli.checkpoint.write import check_output
from prunecli.errors import InputError, NothingRemoved
from prunecli.facts import BudgetFacts, CutFacts, Figures, PruneFacts
from prunecli.methods.base import Method
from prunecli.methods.hook import Hook
from prunecli.model import DEFAULT, Model, Opening, open_model
from prunecli.pipeline.container import Provenance, save
from prunecli.pipeline.evaluation import data_for, evaluated, pictures_of
from prunecli.pipeline.figures import figures, source_bytes, tensor_bytes
from prunecli.pipeline.operate import Operated, operate, prunable, restore_dtypes
from prunecli.recipe.schema import Recipe, Train
from prunecli.surgery.expand import collapsed
from prunecli.surgery.recover import recalibrate, refit
from prunecli.train.data import Data
from prunecli.train.evaluate import accuracy
from prunecli.train.loop import KeepZeros, Report, Trainer, ignore
from prunecli.units import human, percent


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
    way = _steps(opened, recipe, method, images, report if output is not None else None)
    result, final = way.done, way.model
    _insist_on_change(result, before, opened)
    after = _figures(final, images)
    if output is not None:
        evaluation = evaluated(recipe.data, before.accuracy, after.accuracy)
        provenance = Provenance(recipe.resolved(), result.verified, result.budget, evaluation)
        after = replace(after, bytes=save(output, final, opened, provenance))
    return PruneFacts(
        model=opened.source,
        arch=None if opened.arch is None else str(opened.arch),
        method=method.name,
        before=before,
        pruned=way.pruned,
        after=after,
        removed_channels=result.removed,
        verified=result.verified,
        budget=_met(result.budget, before, after),
        output=None if output is None else str(output),
        seconds=round(time.monotonic() - started, 3),
        cuts=_cuts(opened, final),
        notes=[*opened.notes, *_disagreement(result.budget, before, after)],
        recovered=way.recovered,
    )


def _trains(recipe: Recipe) -> bool:
    return recipe.train is not None and recipe.train.epochs > 0


def _figures(model: Model, data: Data | None) -> Figures:
    return figures(model, model.module, tensor_bytes(model.module), _accuracy(model.module, data))


def _collapsed(model: Model) -> Model:
    """A model of an earlier run may hold expanded layers; they are undone, and made again at the end."""
    if not model.journal.expansions:
        return model
    module, journal = collapsed(model.module, model.journal)
    return replace(model, module=module, journal=journal)


@dataclass(frozen=True)
class _Way:
    """All cuts as one, the model, and its figures on the way there, where anything won accuracy back."""

    done: Operated
    model: Model
    pruned: Figures | None = None
    recovered: Figures | None = None


def _steps(opened: Model, recipe: Recipe, method: Method, images: Data | None, report: Report | None) -> _Way:
    """Cut, recover, train, once or as often as the budget says; without a `report` nothing is trained."""
    current = _collapsed(opened)
    way = _Way(Operated(current.module, Journal(), None, -opened.journal.filled_in), current)
    progress = [1.0] if recipe.budget is None else recipe.budget.progress
    if (hook := _hook(current, recipe, method)) is not None:
        return _trained_for(way, opened, recipe, method, images, hook, report)
    for step, share in enumerate(progress):
        result = operate(way.model, recipe, method, images, reference=opened, progress=share)
        model = way.model.after(restore_dtypes(result.module, way.model.module), result.journal)
        settings = _part(recipe.train, step, len(progress)) if report is not None else None
        pruned = _figures(model, images) if settings or recipe.recover else None
        recovered = None
        if recipe.recover is not None:
            model = _recovered(way.model, model, result.journal, recipe, images)
            recovered = _figures(model, images) if settings else None
        if settings is not None and images is not None and report is not None:
            model = _trained(model, opened, recipe, settings, images, report)
        way = _Way(way.done.then(result), model, pruned, recovered)
    return way


def _hook(model: Model, recipe: Recipe, method: Method) -> Hook | None:
    """What the method adds to training; None where it does not train."""
    return None if recipe.budget is None else method.hook(list(prunable(model.module, method)), recipe.budget.amount)


def _trained_for(
    way: _Way, opened: Model, recipe: Recipe, method: Method, images: Data | None, hook: Hook, report: Report | None
) -> _Way:
    """Train until the method has made its zeros, then strip what died of them."""
    settings = recipe.train
    if report is None:
        raise InputError(f"method {method.name} trains: a dry run cannot tell what goes", hint="leave out --dry-run")
    if settings is None or not settings.epochs or images is None:
        raise InputError(
            f"method {method.name} trains: it needs data and epochs", hint="data: ..., train: {epochs: 10}"
        )
    teacher = opened.module if settings.distill else None
    trainer = Trainer(images, settings, recipe.seed, teacher, [hook], report=report)
    model = replace(way.model, module=trainer.fit(way.model.module).module)
    result = operate(model, recipe, method, images, reference=opened, trained=True)
    return _Way(way.done.then(result), model.after(restore_dtypes(result.module, model.module), result.journal))


def _recovered(before: Model, after: Model, cut: Journal, recipe: Recipe, images: Data | None) -> Model:
    """Fitted to the model before the cut, on images of the recipe's data."""
    if images is None or recipe.recover is None:
        raise InputError("recover looks at images, but no data is given", hint="data: in the recipe, or --data")
    pictures = partial(pictures_of, images, after.dtype, recipe.seed, recipe.recover.images)
    if recipe.recover.by == "batchnorm":
        return replace(after, module=recalibrate(after.module, pictures))
    return replace(after, module=refit(before.module, after.module, cut, pictures))


def _part(settings: Train | None, step: int, steps: int) -> Train | None:
    """The epochs that belong to one of several steps; None where there are none."""
    if settings is None:
        return None
    epochs = settings.epochs * (step + 1) // steps - settings.epochs * step // steps
    return settings.model_copy(update={"epochs": epochs}) if epochs else None


def _trained(model: Model, opened: Model, recipe: Recipe, settings: Train, data: Data, report: Report) -> Model:
    teacher = opened.module if settings.distill else None
    hooks = [KeepZeros(model.module)]
    trainer = Trainer(data, settings, recipe.seed, teacher, hooks, report=report)
    return replace(model, module=trainer.fit(model.module).module)


def _met(budget: BudgetFacts | None, before: Figures, after: Figures) -> BudgetFacts | None:
    """The size is known to the byte only when the file is there."""
    return replace(budget, met=after.bytes / before.bytes) if budget and budget.unit == "size" else budget


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


def _insist_on_change(result: Operated, before: Figures, opened: Model) -> None:
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


def _cuts(opened: Model, final: Model) -> list[CutFacts]:
    """Widths before and after, for each layer that lost outputs."""
    before = {n: p.shape[0] for n, p in opened.module.named_parameters() if p.ndim > 1}
    after = {n: p.shape[0] for n, p in final.module.named_parameters() if p.ndim > 1}
    return [CutFacts(n.rpartition(".")[0], before[n], after[n]) for n in before if after[n] != before[n]]
