"""Pruning with self-supervision (Caron et al. 2020, arXiv 2001.03554): masks that are found without labels.

Round by round: train a copy of what is left on a pretext task, rank the weights of all layers by the magnitude they
have then, and drop the least. The survivors keep the values they had before, so that every round starts from the same
weights W_k; training with labels, if any, comes after the last round.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from prunecli.errors import InputError
from prunecli.methods.base import Evidence, Method
from prunecli.recipe.schema import Budget, Train

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunecli.graph.tape import Example


def earlier(module: nn.Module, path: str) -> nn.Module:
    """A copy of a module with the weights of an earlier checkpoint.

    Raises:
        CheckpointError: the file cannot be read.
        InputError: it holds another network.
    """
    from prunecli.checkpoint.read import read
    from prunecli.graph.copying import copied
    from prunecli.graph.tensors import stored

    twin = copied(module)
    own = stored(twin)
    state = read(path).spelled(own).state
    odd = [n for n, t in own.items() if n not in state or state[n].shape != t.shape]
    if odd:
        reason = f"has no tensor {odd[0]} of shape {tuple(own[odd[0]].shape)}"
        raise InputError(f"method.rewind: {path} {reason}", hint="an earlier checkpoint of the same network")
    twin.load_state_dict(twin.state_dict() | {name: state[name] for name in own})
    return twin


class SelfSupervision(Method):
    """Fields of ``method: {name: selfsup}``.

    Attributes:
        objective: ``rotation`` tells by how many quarter turns an image is rotated (Gidaris et al. 2018), ``exemplar``
            brings two views of an image together and others apart (Dosovitskiy et al. 2014), ``instance`` tells every
            image from all others through a memory bank (Wu et al. 2018); ``labels`` is what they are compared with.
        fraction: of what is left that goes in every round.
        pretext: the training of one round.
        rewind: W_k, where it is not the given weights: what so many epochs of the pretext task make of them, or an
            earlier checkpoint of the same network.
        leave: ``rewound`` weights, to be trained with labels, or those ``trained`` once more on the pretext task.
    """

    kind = "train"

    name: Literal["selfsup"]
    structure: Literal["weight"] = "weight"
    objective: Literal["rotation", "exemplar", "instance", "labels"] = "rotation"
    fraction: float = Field(0.2, gt=0, lt=1)
    pretext: Train = Train(epochs=1, lr=0.05, validation=0.0)
    rewind: Annotated[int, Field(ge=0)] | str = 0
    leave: Literal["rewound", "trained"] = "rewound"

    @property
    def budget_units(self) -> tuple[str, ...]:
        """Zeros are what it makes."""
        return ("sparsity",)

    @property
    def trains_last(self) -> bool:
        """Labels come when the mask is done."""
        return True

    def progress(self, budget: Budget) -> list[float]:
        """A round for each `fraction`; the last one takes just what is asked."""
        rounds = math.ceil(math.log(1 - budget.amount) / math.log(1 - self.fraction) - 1e-9)
        shares = [(1 - (1 - self.fraction) ** number) / budget.amount for number in range(1, rounds)]
        return [*shares, 1.0]

    def prunable(self, module: nn.Module, example: Example, names: list[str]) -> list[str]:
        """All but the last layer, whose outputs are classes (section 3.1)."""
        from prunecli.methods.pretext import head_of

        head = head_of(module, example)
        return [name for name in names if name != f"{head}.weight"]

    def start(self, evidence: Evidence) -> nn.Module | None:
        """W_k, where it is not what was given."""
        if isinstance(self.rewind, str):
            return earlier(evidence.module, self.rewind)
        settings = self.pretext.model_copy(update={"epochs": self.rewind})
        return self._trained(evidence, settings) if self.rewind else None

    def weight_scores(self, evidence: Evidence, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The magnitudes after training on the pretext task."""
        trained = dict(self._trained(evidence, self.pretext).named_parameters())
        return {name: trained[name].detach().abs() for name in weights}

    def finish(self, evidence: Evidence) -> nn.Module | None:
        """The features themselves, where they are wanted."""
        return self._trained(evidence, self.pretext) if self.leave == "trained" else None

    def _trained(self, evidence: Evidence, settings: Train) -> nn.Module:
        from prunecli.methods.pretext import OBJECTIVES

        return evidence.trained(settings, OBJECTIVES[self.objective](), self.name)
