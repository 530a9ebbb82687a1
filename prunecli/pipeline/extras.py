"""More figures for the report: what they need is found missing before the work, not after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prunecli.checkpoint.write import check_output
from prunecli.device import computed
from prunecli.errors import InputError
from prunecli.graph.copying import placed
from prunecli.methods.pretext import head_of
from prunecli.model import Model, open_beside
from prunecli.pipeline.overlap import insist_on_one_network, overlap, shares_left, write_layers
from prunecli.pipeline.steps import Way
from prunecli.ranks import rank
from prunecli.recipe.schema import Recipe
from prunecli.train.data import Data
from prunecli.train.linear_probe import linear_probe


@dataclass(frozen=True)
class Extras:
    """The figures that `report` in a recipe asks for, with what they are made of.

    Attributes:
        recipe: says which.
        opened: the model before the first step.
        images: of the recipe's data.
        earlier: the result that zeros are compared with.
    """

    recipe: Recipe
    opened: Model
    images: Data | None
    earlier: Model | None

    @classmethod
    def prepared(cls, recipe: Recipe, opened: Model, images: Data | None) -> Extras:
        """Whatever a figure needs is there.

        Raises:
            InputError: no images with labels or no last layer to probe, no earlier result of this network.
            OutputError: the CSV of the layers cannot be written.
        """
        asked, earlier = recipe.report, None
        if asked.linear_probe:
            if images is None or images.classes is None:
                raise InputError("a linear probe needs images with labels", hint="data: in the recipe, or --data")
            head_of(opened.module, opened.example)
        if asked.overlap_with is not None:
            earlier = open_beside(opened, asked.overlap_with)
            insist_on_one_network(earlier, opened)
        if asked.layers is not None:
            check_output(Path(asked.layers))
        return cls(recipe, opened, images, earlier)

    def added_to(self, way: Way, *, write: bool) -> Way:
        """The way with these figures.

        Args:
            way: to its end.
            write: whether the CSV of the layers is written, by the first of several processes.
        """
        found: dict[str, float] = dict(way.outcomes)
        layers = self._layers(way)
        if self.earlier is not None:
            shared = overlap(way.model, self.earlier, self.opened)
            found |= {"overlap": shared.found, "overlap of random masks": shared.expected}
            for name, share in shared.layers.items():
                layers[name]["overlap"] = share
        if self.recipe.report.linear_probe and self.images is not None:
            found["linear probe"] = self._probed(way.model, self.images)
        if self.recipe.report.layers is not None and write and rank() == 0:
            write_layers(Path(self.recipe.report.layers), layers)
        return replace(way, outcomes=found, by_layer=layers)

    def _probed(self, model: Model, images: Data) -> float:
        def probe(place: torch.device) -> float:
            return linear_probe(placed(model.module, place), model.example, images, self.recipe.seed)

        return computed(self.recipe.device, probe)

    def _layers(self, way: Way) -> dict[str, dict[str, float]]:
        """What is left of each weight, with what the method found there."""
        found: Mapping[str, Mapping[str, float]] = way.by_layer
        layers = {name: dict(facts) for name, facts in found.items()}
        for name, share in shares_left(way.model, self.opened).items():
            layers[name] = {"keep": share, **layers.get(name, {})}
        return layers
