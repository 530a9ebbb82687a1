"""Everything the tool reports, as frozen dataclasses that turn into JSON one to one. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerFacts:
    """One module that owns parameters. `flops` counts one multiply-add once (fvcore's convention)."""

    name: str
    type: str
    shape: list[int]
    params: int
    nonzero: int
    flops: int | None
    dead: int  # output channels whose every weight is zero


@dataclass(frozen=True)
class GroupFacts:
    """Channels that must be removed together. `frozen` is empty, or the reason why none may go."""

    name: str
    channels: int
    frozen: str
    members: list[str]  # "parameter[dim]"
    params: int  # parameters that one channel carries


@dataclass(frozen=True)
class WhyFacts:
    """Why a layer's channels can or cannot go: a group that the layer writes or reads."""

    role: str  # writes, reads
    group: GroupFacts
    ties: list[str]  # ops that make channels of several tensors one
    readers: list[str]  # ops where the channels end


@dataclass(frozen=True)
class Figures:
    """What a model costs. `params` counts parameters, not buffers; `bytes` is the size of the file."""

    params: int
    nonzero: int
    sparsity: float
    flops: int | None
    bytes: int
    accuracy: float | None = None


@dataclass(frozen=True)
class DynamicFacts:
    """FLOPs that images take in a model with gates, and the mean share of open channels by gated layer."""

    images: int
    mean: int
    least: int
    most: int
    percentiles: dict[str, int]  # "5", "25", "50", "75", "95"
    open: dict[str, float]


@dataclass(frozen=True)
class AnalyzeFacts:
    """The result of `prunecli analyze`."""

    model: str
    format: str
    arch: str | None
    input: list[int] | str | None
    params: int
    nonzero: int
    sparsity: float
    flops: int | None
    bytes: int
    accuracy: float | None
    groups: list[GroupFacts]
    layers: list[LayerFacts]
    flops_by_op: dict[str, int] = field(default_factory=dict)
    unknown_ops: dict[str, int] = field(default_factory=dict)
    why: list[WhyFacts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dynamic: DynamicFacts | None = None


@dataclass(frozen=True)
class Verified:
    """How far the smaller model is from the masked one: errors of the outputs over `inputs` images.

    `max_rel_error` is relative to the largest absolute output.
    """

    max_abs_error: float
    max_rel_error: float
    inputs: int
    dtype: str = "float64"


@dataclass(frozen=True)
class BudgetFacts:
    """The asked and the met budget, both as a share of the model before (or sparsity)."""

    unit: str
    asked: float
    met: float


@dataclass(frozen=True)
class CutFacts:
    """How many channels of a group stay."""

    group: str
    before: int
    after: int


@dataclass(frozen=True)
class PruneFacts:
    """The result of `prunecli prune`.

    `removed_channels` is how many outputs the layers have lost, which `cuts` tells one by one.
    `pruned` is the model before recovery and training won accuracy back, `recovered` that before training.
    `predicted` is what a method said before it trained, `found` what came of it, by name. `layers` says of each
    weight what share of it is kept, and what a method found there.
    """

    model: str
    arch: str | None
    method: str
    before: Figures
    pruned: Figures | None
    after: Figures
    removed_channels: int
    verified: Verified | None
    budget: BudgetFacts | None
    output: str | None
    seconds: float
    cuts: list[CutFacts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recovered: Figures | None = None
    predicted: dict[str, float] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class FinetuneFacts:
    """The result of `prunecli finetune`: test accuracy before and after, validation accuracy by epoch."""

    model: str
    arch: str | None
    before: Figures
    after: Figures
    validation: list[float]
    verified: Verified | None
    budget: BudgetFacts | None
    output: str
    seconds: float
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExportFacts:
    """The result of `prunecli export`."""

    model: str
    output: str
    format: str
    bytes: int
    checked: str  # the runtime that ran the file, or why none did
    max_abs_error: float | None
    seconds: float
    notes: list[str] = field(default_factory=list)


def to_json(facts: Any) -> dict[str, Any]:
    """Plain dictionaries and lists, in field order."""
    return asdict(facts)
