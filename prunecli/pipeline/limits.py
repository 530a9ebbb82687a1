"""Budgets in absolute terms: what is counted, how much of it there was, and how much may stay.

Most are counted exactly from the widths. The size of the file and the time of a forward pass are modelled from
the widths and confirmed on the finished model; the model is corrected until the measured figure meets the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from prunecli.arrays import Bools
from prunecli.checkpoint.journal import Journal
from prunecli.checkpoint.write import file_size
from prunecli.cost.count import COSTS, Polynomial, params
from prunecli.cost.latency import NANO, fitted, forward, turns
from prunecli.device import usable
from prunecli.errors import InputError
from prunecli.exporters.targets import onnx_session
from prunecli.facts import BudgetFacts
from prunecli.graph.channels import Channels, trace
from prunecli.graph.copying import copied, moved
from prunecli.graph.tape import Example
from prunecli.graph.tensors import cast, stored
from prunecli.model import Model
from prunecli.pipeline.figures import weight_bytes
from prunecli.recipe.schema import Budget, Recipe
from prunecli.units import human

Measure = Callable[[nn.Module, Journal], float]
TRIES = 12
SIZE_RESERVE = 1024  # bytes of metadata that are known only at the end: errors, accuracies
CLOSE = {"size": 0.995, "latency": 0.97}  # how much of the limit a measured figure should use


@dataclass(frozen=True)
class Limit:
    """What may stay.

    Attributes:
        unit: name of the budget.
        whole: of the model before.
        amount: at most this much.
        cost: of kept channels, modelled or exact.
        measure: the true figure of a finished model and its journal; None where `cost` is exact.
        show: an amount in words.
    """

    unit: str
    whole: float
    amount: float
    cost: Polynomial
    measure: Measure | None = None
    show: Callable[[float], str] = human

    def met(self, figure: float) -> float:
        """The figure as the budget states it: a share that is kept, or sparsity."""
        return 1 - figure / self.whole if self.unit == "sparsity" else figure / self.whole

    def facts(self, figure: float) -> BudgetFacts:
        """Asked and met."""
        return BudgetFacts(self.unit, self.met(self.amount), self.met(figure))


@dataclass(frozen=True)
class Solution:
    """What goes, and the finished model in its own dtype with its journal."""

    removed: Bools
    module: nn.Module
    journal: Journal


@dataclass(frozen=True)
class Stage:
    """A model on its way: its channels and what was done to it since it was opened.

    Attributes:
        reference: as it was opened at the very start; budgets are shares of it.
        opened: as it was opened for this step.
        module: float64, perhaps stripped already.
        journal: of that strip.
    """

    reference: Model
    opened: Model
    module: nn.Module
    example: Example
    channels: Channels
    journal: Journal
    recipe: Recipe

    @property
    def budget(self) -> Budget:
        """Of the recipe; the schema checked that there is one."""
        assert self.recipe.budget is not None
        return self.recipe.budget


def limit_for(stage: Stage, progress: float = 1.0) -> Limit:
    """The limit of a step that has gone `progress` of the way from the whole to the budget."""
    return LIMITS[stage.budget.unit](stage, progress)


def _amount(budget: Budget, whole: float, progress: float) -> float:
    asked = 1 - budget.amount if budget.unit == "sparsity" else budget.amount
    final = asked * whole if asked <= 1 else asked
    return whole - progress * (whole - min(final, whole))


def _counted(polynomial: Callable[[nn.Module, Channels], Polynomial]) -> Callable[[Stage, float], Limit]:
    """A limit on what a polynomial counts exactly."""

    def build(stage: Stage, progress: float) -> Limit:
        module = stage.reference.module
        full = polynomial(module, trace(module, stage.reference.example))
        whole = full(np.ones(full.widths.shape[1], dtype=np.bool_))
        amount = _amount(stage.budget, whole, progress)
        return Limit(stage.budget.unit, whole, amount, polynomial(stage.module, stage.channels))

    return build


def _size(stage: Stage, progress: float) -> Limit:
    """Bytes of the written file, its header and metadata included."""
    state = stored(stage.opened.module)
    widths = {name: state[name].element_size() for name in state if name in stage.channels.tape.params}
    cost = params(stage.channels, widths, widths)
    whole = float(weight_bytes(stage.reference))

    def measure(module: nn.Module, journal: Journal) -> float:
        full = stage.opened.journal.then(stage.journal).then(journal)
        metadata = {"journal": full.to_json(), "recipe": stage.recipe.resolved()}
        return float(file_size(stored(module), metadata) + SIZE_RESERVE)

    return Limit("size", whole, _amount(stage.budget, whole, progress), cost, measure, lambda n: f"{human(n)}B")


def _latency(stage: Stage, progress: float) -> Limit:
    """Nanoseconds of one forward pass of the model in its own dtype."""
    device = usable(stage.budget.device, "cpu or cuda", "budget.device")
    example = stage.reference.example.to(device=str(device))
    dense = _runner(stage, stage.reference.module, example)
    whole = float(np.median(turns([dense], device))) * NANO
    current = cast(moved(stage.module, device), stage.opened.dtype)
    cost = fitted(current, example, stage.channels)
    cost = cost.scaled(whole / max(cost(np.ones(stage.channels.count, dtype=np.bool_)), 1))

    def measure(module: nn.Module, journal: Journal) -> float:
        del journal
        pairs = turns([dense, _runner(stage, module, example)], device)
        return whole * float(np.median(pairs[:, 1] / pairs[:, 0]))  # turn by turn against the dense model

    return Limit(
        "latency", whole, _amount(stage.budget, whole, progress), cost, measure, lambda ns: f"{ns / 1e6:.3g} ms"
    )


def _runner(stage: Stage, module: nn.Module, example: Example) -> Callable[[], object]:
    if stage.budget.runtime == "onnxruntime":
        return onnx_session(copied(module).eval(), example)
    return forward(moved(module, usable(stage.budget.device, "cpu or cuda", "budget.device")), example)


def _layers(stage: Stage, progress: float) -> Limit:
    """No limit of its own: every layer's share is given, and what stays is counted in params."""
    del progress
    counted = _counted(COSTS["params"])(stage, 1.0)
    return Limit("layers", counted.whole, counted.whole, counted.cost)


LIMITS: dict[str, Callable[[Stage, float], Limit]] = {
    "flops": _counted(COSTS["flops"]),
    "params": _counted(COSTS["params"]),
    "sparsity": _counted(COSTS["sparsity"]),
    "size": _size,
    "latency": _latency,
    "layers": _layers,
}


def confirmed(limit: Limit, solve: Callable[[float], Solution]) -> tuple[Bools, float]:
    """Solve on the modelled cost until the measured figure is below the limit and close to it.

    Args:
        limit: with a `measure`.
        solve: for a modelled limit.

    Returns:
        The channels that go, and the measured figure.

    Raises:
        InputError: no model that was measured meets the limit.
    """
    assert limit.measure is not None
    best: tuple[float, Bools] | None = None
    nearest, target = np.inf, limit.amount * (1 + CLOSE[limit.unit]) / 2
    low, modelled, high = 0.0, limit.amount, float(limit.cost(np.ones(limit.cost.widths.shape[1], dtype=np.bool_)))
    for _ in range(TRIES):
        found = solve(modelled)
        figure, reached = limit.measure(found.module, found.journal), float(limit.cost(~found.removed))
        nearest = min(nearest, figure)
        if figure <= limit.amount:
            low = max(low, reached)
            best = (figure, found.removed) if best is None or figure > best[0] else best
            if figure >= limit.amount * CLOSE[limit.unit]:
                break
        else:
            high = min(high, reached)
        scaled = reached * target / figure
        modelled = scaled if low < scaled < high else (low + high) / 2
    if best is None:
        raise InputError(
            f"the {limit.unit} budget {limit.show(limit.amount)} was not met: "
            f"the nearest that was measured is {limit.show(nearest)} of {limit.show(limit.whole)}",
            hint="ask for more, or exclude fewer layers",
        )
    return best[1], best[0]
