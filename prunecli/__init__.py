"""Post-hoc surgery on PyTorch models, from Python:

    module = prunecli.load("smaller.safetensors")
    facts = prunecli.prune(prunecli.load_recipe("magnitude-flops50"), "model.pt", Path("smaller.safetensors"))

Importing the package loads nothing heavy; each name is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunecli.errors import PrunecliError
    from prunecli.graph.rules.call import rule
    from prunecli.loading import load
    from prunecli.methods.dual_averaging import GRDA
    from prunecli.model import Opening
    from prunecli.pipeline.analyze import analyze
    from prunecli.pipeline.export import export
    from prunecli.pipeline.finetune import finetune
    from prunecli.pipeline.prune import prune
    from prunecli.recipe.load import load as load_recipe

_HOMES = {
    "GRDA": "prunecli.methods.dual_averaging:GRDA",
    "Opening": "prunecli.model:Opening",
    "PrunecliError": "prunecli.errors:PrunecliError",
    "analyze": "prunecli.pipeline.analyze:analyze",
    "export": "prunecli.pipeline.export:export",
    "finetune": "prunecli.pipeline.finetune:finetune",
    "load": "prunecli.loading:load",
    "load_recipe": "prunecli.recipe.load:load",
    "prune": "prunecli.pipeline.prune:prune",
    "rule": "prunecli.graph.rules.call:rule",
}

__all__ = [
    "GRDA",
    "Opening",
    "PrunecliError",
    "analyze",
    "export",
    "finetune",
    "load",
    "load_recipe",
    "prune",
    "rule",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prunecli' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(home), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
