"""Weights that are zero stay zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunecli.methods.hook import Hook
from prunecli.train.sharding import part_of


class KeepZeros(Hook):
    """Weights that are zero at the start stay zero."""

    shards = True

    def __init__(self, module: nn.Module) -> None:
        zeros = {name: p == 0 for name, p in module.named_parameters() if p.ndim > 1}
        self._zeros = {name: zero for name, zero in zeros.items() if bool(zero.any())}
        self._parts: dict[str, Tensor] = {}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Put the zeros back."""
        del step
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, zero in self._zeros.items():
                parameter = parameters[name]
                if parameter.shape != zero.shape:  # another layer stands in its place for a while
                    continue
                if name not in self._parts:
                    self._parts[name] = part_of(zero, parameter).to(parameter.device)
                parameter.masked_fill_(self._parts[name], 0)

    def state(self) -> dict[str, Any]:
        """The masks, since later weights may be zero by accident."""
        return dict(self._zeros)

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._zeros, self._parts = dict(state), {}
