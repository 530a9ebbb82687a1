"""The way from the model that was opened to the one that is written: cut, recover, train, as often as is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from prunecli.checkpoint.journal import Journal
from prunecli.device import computed
from prunecli.errors import InputError, NothingRemoved
from prunecli.facts import Figures
from prunecli.graph.copying import placed
from prunecli.methods.base import Evidence, Method
from prunecli.methods.hook import Hook
from prunecli.model import Model
from prunecli.pipeline.evaluation import evidence_of, flops_taken, known_accuracy
from prunecli.pipeline.figures import figures, tensor_bytes
from prunecli.pipeline.operate import Operated, folded, operate, prunable, restore_dtypes
from prunecli.pipeline.training import Training
from prunecli.recipe.schema import Recipe, Train
from prunecli.surgery.expand import collapsed
from prunecli.surgery.recover import Refitted, recalibrate, refit
from prunecli.train.data import Data
from prunecli.train.split import Drawn
from prunecli.train.zeros import KeepZeros
from prunecli.units import human, percent


@dataclass(frozen=True)
class Way:
    """All cuts as one, the model, and its figures on the way there, where anything won accuracy back.

    Attributes:
        predictions, outcomes, by_layer: what a method that trains said before, and found.
        notes: what the user should know.
    """

    done: Operated
    model: Model
    pruned: Figures | None = None
    recovered: Figures | None = None
    predictions: Mapping[str, float] = field(default_factory=dict)
    outcomes: Mapping[str, float] = field(default_factory=dict)
    by_layer: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Steps:
    """What every step needs.

    Attributes:
        opened: the model that budgets are a share of.
        recipe: what to do.
        images: of the recipe's data.
        training: None where nothing is to be trained: a dry run.
    """

    opened: Model
    recipe: Recipe
    images: Data | None
    training: Training | None

    @property
    def method(self) -> Method:
        """Of the recipe."""
        method: Method = self.recipe.method
        return method

    def run(self) -> Way:
        """All of them; batch norms are folded last, since training and recovery need them."""
        way = self._gone()
        if not self.recipe.strip.fold_batchnorm:
            return way
        result = folded(way.model, self.recipe, self.images)
        model = way.model.after(restore_dtypes(result.module, way.model.module), result.journal)
        return replace(way, done=way.done.then(replace(result, budget=way.done.budget)), model=model)

    def _gone(self) -> Way:
        """What the budget asks for is gone."""
        given = _collapsed(self.opened)
        model = self._replaced(given, self.method.start(self._evidence(given)))
        way = Way(Operated(model.module, Journal(), None, -self.opened.journal.filled_in), model)
        if (hook := self._hook(model)) is not None:
            return self._trained_for(way, hook)
        shares = [1.0] if self.recipe.budget is None else self.method.progress(self.recipe.budget)
        if self.training is not None:
            self.training.expected = self._rounds(shares)
        way = replace(way, predictions=self._rounds(shares))
        for step, share in enumerate(shares):
            way = self._cut(way, share, *self._training_after(step, len(shares)))
            if len(shares) > 1 and way.done.budget is not None:
                way = replace(way, outcomes={**way.outcomes, _round(way.done.budget.unit, step): way.done.budget.met})
        return replace(way, model=self._replaced(way.model, self.method.finish(self._evidence(way.model))))

    def _rounds(self, shares: Sequence[float]) -> dict[str, float]:
        """What every round will reach, where a budget that is a share is approached in several."""
        budget = self.recipe.budget
        if budget is None or len(shares) == 1 or budget.amount > 1:
            return {}
        whole = 0.0 if budget.unit == "sparsity" else 1.0
        return {_round(budget.unit, n): whole + share * (budget.amount - whole) for n, share in enumerate(shares)}

    def _evidence(self, model: Model) -> Evidence:
        """What the method may look at before and after all steps."""
        fit = None if self.training is None else self.training.keeping_zeros(model.module)
        return evidence_of(model.module, model.example, self.recipe.seed, self.images, fit)

    def _replaced(self, model: Model, module: nn.Module | None) -> Model:
        return model if module is None else replace(model, module=module)

    def _hook(self, model: Model) -> Hook | None:
        """What the method adds to training; None where it does not train."""
        if self.method.kind == "score":
            return None
        return self.method.hook(list(prunable(model.module, model.example, self.method)), self.recipe.budget)

    def _trained_for(self, way: Way, hook: Hook) -> Way:
        """Train until the method has made its zeros, then strip what died of them."""
        settings = self.recipe.train
        if self.training is None:
            raise InputError(
                f"method {self.method.name} trains: a dry run cannot tell what goes", hint="leave out --dry-run"
            )
        if settings is None or not settings.epochs or self.images is None:
            raise InputError(
                f"method {self.method.name} trains: it needs data and epochs", hint="data: ..., train: {epochs: 10}"
            )
        if settings.ema is not None:
            raise InputError(f"method {self.method.name} is done with its last weights", hint="leave out train.ema")
        fit = self.training.fit(way.model.module, settings, [hook])
        model = way.model.after(fit.module, hook.journal)
        result = operate(model, self.recipe, self.images, reference=self.opened, trained=True)
        if self.method.kind == "dynamic" and result.budget is not None:
            result = replace(result, budget=replace(result.budget, met=fit.outcomes[result.budget.unit]))
        final = model.after(restore_dtypes(result.module, model.module), result.journal)
        done = way.done.then(result)
        return replace(
            way, done=done, model=final, predictions=fit.predictions, outcomes=fit.outcomes, by_layer=fit.by_layer
        )

    def _cut(self, way: Way, share: float, settings: Train | None, start: float) -> Way:
        """One step towards the budget, and what wins accuracy back after it: training that starts at some epoch."""
        before = way.model
        result = operate(
            before, self.recipe, self.images, reference=self.opened, progress=share, training=self.training
        )
        model = before.after(restore_dtypes(result.module, before.module), result.journal)
        if settings is not None and share == 1.0 and not self.recipe.strip.fold_batchnorm:  # training would be in vain
            insist_on_change(way.done.then(result), model, self.opened)
        pruned = self.figures(model) if settings or self.recipe.recover else None
        recovered, notes = None, way.notes
        if self.recipe.recover is not None:
            model, left = self._recovered(before, model, result.journal)
            recovered = self.figures(model) if settings else None
            notes = tuple(dict.fromkeys([*notes, *left]))
        if settings is not None and self.training is not None:
            fit = self.training.fit(model.module, settings, [KeepZeros(model.module)], start)
            model = replace(model, module=fit.module)
        done = way.done.then(result)
        return replace(way, done=done, model=model, pruned=pruned, recovered=recovered, notes=notes)

    def figures(self, model: Model) -> Figures:
        """Of a model on the way; with gates its FLOPs are those that the test images take in the mean."""
        accuracy = known_accuracy(model.module, self.images, self.recipe.device)
        found = figures(model, model.module, tensor_bytes(model.module), accuracy)
        taken = flops_taken(model, self.images, self.recipe.device)
        return found if taken is None else replace(found, flops=taken.mean)

    def _recovered(self, before: Model, after: Model, cut: Journal) -> tuple[Model, list[str]]:
        """Fitted to the model before the cut, on images of the recipe's data, and notes on what was not."""
        recover = self.recipe.recover
        if self.images is None or recover is None:
            raise InputError("recover looks at images, but no data is given", hint="data: in the recipe, or --data")
        split = self.images.train

        def fitted(place: torch.device) -> Refitted:
            home = torch.zeros((), dtype=after.dtype, device=place)
            seen = partial(Drawn(split, self.recipe.seed, home, recover.augment).images, recover.images)
            if recover.by == "batchnorm":
                return Refitted(recalibrate(placed(after.module, place), seen), {})
            return refit(placed(before.module, place), placed(after.module, place), cut, seen)

        found = computed(self.recipe.device, fitted)
        return replace(after, module=placed(found.module, "cpu")), _unfitted(found.left)

    def _training_after(self, step: int, steps: int) -> tuple[Train | None, float]:
        """The part of the training that belongs to one of several steps, and how many epochs came before it."""
        settings = self.recipe.train
        part, parts = (step + 1 - steps, 1) if self.method.trains_last else (step, steps)
        if settings is None or not settings.epochs or self.training is None or part < 0:
            return None, 0.0
        epochs = settings.epochs / parts
        return settings.model_copy(update={"epochs": epochs}), part * epochs


def _unfitted(left: Mapping[str, str]) -> list[str]:
    """A note for each reason why layers were not fitted."""
    layers = {reason: [name for name, why in left.items() if why == reason] for reason in left.values()}
    return [f"recover left {_named(names)} as cut: {reason}" for reason, names in layers.items()]


def _named(layers: Sequence[str], most: int = 3) -> str:
    """A few of them, and how many more there are."""
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(layers[:most]) + more


def _round(unit: str, step: int) -> str:
    return f"{unit} in round {step + 1}"


def _collapsed(model: Model) -> Model:
    """A model of an earlier run may hold expanded layers; they are undone, and made again at the end."""
    if not model.journal.expansions:
        return model
    module, journal = collapsed(model.module, model.journal)
    return replace(model, module=module, journal=journal)


def insist_on_change(done: Operated, model: Model, opened: Model) -> None:
    """Zeroed weights, gates and factors are a change even where no channel could go.

    Raises:
        NothingRemoved: nothing has changed.
    """
    now, then = model.journal, opened.journal
    if done.removed or (now.gates, now.ranks) != (then.gates, then.ranks):
        return
    parameters = list(opened.module.parameters())
    if _zeros(done.module.parameters()) > _zeros(parameters):
        return
    reason, budget = "there is nothing that provably does not matter", done.budget
    if budget is not None:
        reason = f"the {budget.unit} budget {percent(budget.asked)} is met already ({percent(budget.met)})"
    size = human(sum(p.numel() for p in parameters))
    raise NothingRemoved(
        f"nothing was removed from {opened.source} ({size} params): {reason}; nothing was written",
        hint="prunecli analyze shows the zeros and the frozen groups",
    )


def _zeros(tensors: Iterable[Tensor]) -> int:
    return sum(int((tensor == 0).sum()) for tensor in tensors)
