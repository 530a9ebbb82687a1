"""Where a run leaves its resumable state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunecli.errors import CheckpointError, InputError
from prunecli.ranks import rank


@dataclass(frozen=True)
class Saver:
    """Where the state goes, what identifies the run, and whether to continue from it."""

    path: Path
    identity: str
    resume: bool = False
    seconds: float = 60.0

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state whole or not at all."""
        from prunecli.checkpoint.write import atomic

        if rank() == 0:
            with atomic(self.path) as stream:
                torch.save({"identity": self.identity, **state}, stream)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none yet.

        Raises:
            CheckpointError: the state is damaged.
            InputError: it belongs to another run.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error}", hint="start again without --resume"
            ) from error
        if state.get("identity") != self.identity:
            raise InputError(
                f"{self.path} belongs to another run (other model, data or settings)",
                hint="give the same arguments as before, or start again without --resume",
            )
        return state
