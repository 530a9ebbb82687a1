"""All methods by name. No torch here; a method's file is imported when a recipe names it.

A plug-in adds its own through the entry-point group ``prunecli.methods``.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from prunecli.errors import RecipeError
from prunecli.methods.base import Method

_BUILTIN = {
    "none": "prunecli.methods.none:Nothing",
    "magnitude": "prunecli.methods.magnitude:Magnitude",
    "random": "prunecli.methods.random:Random",
    "str": "prunecli.methods.str:SoftThresholds",
    "grda": "prunecli.methods.grda:DirectionalPruning",
    "gumbel": "prunecli.methods.gumbel:GumbelMasks",
    "selfsup": "prunecli.methods.selfsup:SelfSupervision",
    "ftwt": "prunecli.methods.ftwt:FireTogether",
    "batchnorm": "prunecli.methods.batchnorm:BatchNormScale",
    "fpgm": "prunecli.methods.fpgm:GeometricMedian",
    "taylor": "prunecli.methods.taylor:Taylor",
    "fisher": "prunecli.methods.fisher:Fisher",
    "snip": "prunecli.methods.snip:Snip",
    "synflow": "prunecli.methods.synflow:SynFlow",
    "wanda": "prunecli.methods.wanda:Wanda",
    "nm": "prunecli.methods.nm:NofM",
}


@cache
def _places() -> dict[str, str]:
    places = dict(_BUILTIN)
    for point in entry_points(group="prunecli.methods"):
        if point.name in places:
            raise RecipeError(f"two methods are called {point.name!r}: {places[point.name]} and {point.value}")
        places[point.name] = point.value
    return places


def method_names() -> list[str]:
    """Names of all methods."""
    return list(_places())


def method_class(name: str) -> type[Method]:
    """The class that holds a method's fields and computes its scores."""
    module, _, attribute = _places()[name].partition(":")
    kind: type[Method] = getattr(importlib.import_module(module), attribute)
    return kind
