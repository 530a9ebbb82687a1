"""What a method is: typed recipe fields, and a score for each channel or each weight. No torch at import."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from prunecli.errors import InputError
from prunecli.recipe.schema import Budget, Closed, Train

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from prunecli.graph.channels import Channels
    from prunecli.graph.tape import Example
    from prunecli.methods.hook import Hook

Structure = Literal["channel", "weight", "rank", "none"]
Batches = Callable[[int], "Iterator[tuple[Tensor, Tensor]]"]


@dataclass(frozen=True)
class Evidence:
    """What a method may look at.

    Attributes:
        module: in eval mode; stays as it is.
        example: one input.
        seed: of everything random.
        batches: so many training images with their labels, in batches; None where no data is given.
        fit: trains a copy of the module in which zeros stay zero; None in a dry run.
    """

    module: nn.Module
    example: Example
    seed: int
    batches: Batches | None = None
    fit: Callable[[Train, Hook], nn.Module] | None = None

    def images(self, count: int, method: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches.

        Raises:
            InputError: no data is given.
        """
        if self.batches is None:
            raise InputError(f"{method} looks at images, but no data is given", hint="data: in the recipe, or --data")
        return self.batches(count)

    def trained(self, settings: Train, hook: Hook, method: str) -> nn.Module:
        """A copy of the module after some training, in which zeros stay zero.

        Raises:
            InputError: no data is given, or nothing may be trained.
        """
        if self.fit is None:
            raise InputError(f"method {method} trains: a dry run cannot tell what goes", hint="leave out --dry-run")
        return self.fit(settings, hook)


class Method(Closed):
    """Base of all methods.

    Attributes:
        kind: ``score`` ranks what is there, ``train`` makes its zeros while it trains, ``dynamic`` leaves a model
            that decides for each image what it computes.
        name: the key in the table.
        structure: what goes: whole channels, single weights, or nothing but what is zero already.
        exclude: modules that stay whole: a name (with all below it), a glob, or ``re:PATTERN``.
        min_channels: what every layer keeps at least.
        through_norms: channels may go that a layer norm or a mean runs over (the embedding of a transformer); its
            statistics are then those of the channels that stay, and so they are in the model that is compared with.
    """

    kind: ClassVar[Literal["score", "train", "dynamic"]] = "score"

    name: str
    structure: Structure = "channel"
    exclude: list[str] = Field(default=[])
    min_channels: int = Field(1, ge=1)
    through_norms: bool = False

    @field_validator("exclude")
    @classmethod
    def _valid_patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return value

    @property
    def budget_units(self) -> tuple[str, ...]:
        """Which budgets this method can meet; ``none`` where it can do without, empty when it takes none."""
        return {
            "channel": ("flops", "params", "sparsity", "size", "latency", "layers"),
            "weight": ("sparsity", "layers"),
            "none": (),
        }[self.structure]

    @property
    def trains_last(self) -> bool:
        """Whether all epochs of the recipe come after the last step to the budget, not some after each."""
        return False

    def progress(self, budget: Budget) -> list[float]:
        """How much of the way to the budget is gone after each step."""
        return budget.progress

    def prunable(self, module: nn.Module, example: Example, names: list[str]) -> list[str]:
        """Of the weights with two or more dims those that may become zero."""
        del module, example
        return names

    def start(self, evidence: Evidence) -> nn.Module | None:
        """What comes before the first step: the module to begin with, in place of the one that was given."""
        del evidence
        return None

    def finish(self, evidence: Evidence) -> nn.Module | None:
        """What comes after the last step: a module of the same widths, in place of the one that is left."""
        del evidence
        return None

    def hook(self, weights: Sequence[str], budget: Budget | None) -> Hook | None:
        """What the method adds to training, where it is training that makes the zeros; None where scores do.

        Args:
            weights: names of the weights it may make zero.
            budget: of the recipe.
        """
        del weights, budget
        return None

    def channel_scores(self, evidence: Evidence, channels: Channels) -> NDArray[np.float64]:
        """(channels,) how much each channel matters; comparable between groups."""
        raise NotImplementedError(f"{self.name} scores no channels")

    def weight_scores(self, evidence: Evidence, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """For each weight tensor a score of its shape; comparable between tensors."""
        raise NotImplementedError(f"{self.name} scores no weights")


def select(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Module names that the patterns mean.

    Raises:
        InputError: a pattern that matches nothing; the message gives the nearest names.
    """
    import difflib

    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = {n for n in names if _matches(pattern, n)}
        if not hits:
            near = difflib.get_close_matches(pattern, names, 3, 0.4)
            raise InputError(f"exclude {pattern!r} matches no layer", hint=f"nearest: {', '.join(near) or names[:5]}")
        chosen |= hits
    return chosen


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)
