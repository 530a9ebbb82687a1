"""No method: nothing is decided, only what is zero already is removed."""

from __future__ import annotations

from typing import Literal

from prunecli.methods.base import Method


class Nothing(Method):
    """Strip a checkpoint that already has zeros."""

    name: Literal["none"]
    structure: Literal["none"] = "none"
