"""N:M sparsity (Zhou et al. 2021, arXiv 2102.04010): of every M weights in a row, N stay. 2:4 has kernels on GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from prunecli.methods.base import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor


class NofM(Method):
    """Fields of ``method: {name: nm}``; the pattern is the budget.

    Attributes:
        n: how many stay.
        m: of so many that follow one another along the inputs (and taps) of a filter.
    """

    name: Literal["nm"]
    structure: Literal["weight"] = "weight"
    n: int = Field(2, ge=1)
    m: int = Field(4, ge=2)

    @model_validator(mode="after")
    def _fewer(self) -> NofM:
        if self.n >= self.m:
            raise ValueError(f"n must be less than m, but they are {self.n} and {self.m}")
        return self

    @property
    def budget_units(self) -> tuple[str, ...]:
        """The pattern is the budget."""
        return ()

    def weight_scores(self, evidence: Evidence, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """1 or more for the N largest of every M, less for the others; rows that M does not divide stay whole."""
        return {name: self._pattern(weight) for name, weight in weights.items()}

    def _pattern(self, weight: Tensor) -> Tensor:
        import torch

        rows = weight.detach().abs().movedim(1, -1)  # input channels next to one another
        if rows.shape[-1] % self.m:
            return torch.ones(weight.shape, dtype=torch.float64)
        parts = rows.reshape(-1, self.m)
        order: Tensor = parts.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        return (order < self.n).double().reshape(rows.shape).movedim(-1, 1)
