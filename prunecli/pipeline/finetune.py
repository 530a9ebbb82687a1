"""Finetune: win accuracy back; widths and zeros stay as they are."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunecli.checkpoint.write import check_container
from prunecli.errors import InputError
from prunecli.facts import BudgetFacts, FinetuneFacts, Verified
from prunecli.model import DEFAULT, Model, Opening, Source, open_beside, open_model
from prunecli.pipeline.container import Provenance, identity, origin, save
from prunecli.pipeline.evaluation import data_for, evaluated, known_accuracy
from prunecli.pipeline.figures import beside_the_weights, figures, weight_bytes
from prunecli.pipeline.training import Training
from prunecli.recipe.schema import Recipe, Train
from prunecli.train.loop import Report, ignore
from prunecli.train.zeros import KeepZeros


def finetune(
    recipe: Recipe,
    source: Source,
    output: str | Path,
    opening: Opening = DEFAULT,
    *,
    teacher: Source | None = None,
    resume: bool = False,
    report: Report = ignore,
) -> FinetuneFacts:
    """Train a model on the recipe's data and write it.

    Args:
        recipe: its `data`, `train` and `seed` are used.
        source: MODEL as on the command line, or a module, which stays as it is.
        output: where the result goes; the resumable state lies beside it until then.
        opening: how to open the model; the recipe fills what it leaves open.
        teacher: distil from this model.
        resume: continue a run that was stopped.
        report: progress.

    Raises:
        InputError: the model, the data or the output cannot be used.
    """
    started, output = time.monotonic(), Path(output)
    settings = recipe.train
    if settings is None:
        raise InputError("the recipe says nothing about training", hint="train: {epochs: 2, lr: 0.02}")
    if recipe.data is None:
        raise InputError("no data is given", hint="--data folder:PATH, or data: in the recipe")
    opened = open_model(source, opening.completed(recipe.arch, recipe.inputs))
    inputs = [opened.path] if opened.path else []
    guide = None if teacher is None else open_beside(opened, teacher, trust=opening.trust)
    check_container(output, *inputs, *([guide.path] if guide and guide.path else []))
    images = data_for(opened, recipe.data)
    before = figures(
        opened, opened.module, weight_bytes(opened), known_accuracy(opened.module, images, settings.device)
    )
    guided = None if guide is None else guide.module
    known = _identity(recipe, settings, opened, guide)
    training = Training(images, recipe.seed, guided, output, known, resume, report)
    trained = training.fit(opened.module, settings, [KeepZeros(opened.module)])
    final = replace(opened, module=trained.module)
    reached = known_accuracy(final.module, images, settings.device)
    verified, budget = _inherited(opened)
    evaluation = evaluated(recipe.data, before.accuracy, reached)
    size = save(output, final, opened, Provenance(_combined(opened, recipe), verified, budget, evaluation))
    training.forget()
    return FinetuneFacts(
        model=opened.source,
        arch=None if opened.arch is None else str(opened.arch),
        before=before,
        after=figures(final, final.module, size, reached),
        validation=trained.accuracies,
        verified=verified,
        budget=budget,
        output=str(output),
        seconds=round(time.monotonic() - started, 3),
        notes=[*beside_the_weights(opened), *opened.notes, *training.notes],
    )


def _identity(recipe: Recipe, settings: Train, opened: Model, guide: Model | None) -> str:
    """A resumable state belongs to exactly this run."""
    return identity(
        origin(opened), opened.arch, recipe.data, None if guide is None else origin(guide),
        settings.model_dump(), recipe.seed,
    )  # fmt: skip


def _inherited(model: Model) -> tuple[Verified | None, BudgetFacts | None]:
    """Proof and budget of the cut that made the file; training changes weights, not widths."""
    known = model.container or {}
    verified, budget = known.get("verified"), known.get("budget")
    return (None if verified is None else Verified(**verified)), (None if budget is None else BudgetFacts(**budget))


def _combined(model: Model, recipe: Recipe) -> dict[str, Any]:
    """The recipe of the cut stays with the file, beside that of the training."""
    earlier = (model.container or {}).get("recipe") or {}
    now = recipe.resolved()
    return {**now, "method": earlier.get("method", now["method"]), "budget": earlier.get("budget", now["budget"])}
