"""Learned masks over weights or over channels, and the control that makes them meet a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.graph.copying import moved
from prunecli.graph.tensors import home
from prunecli.methods.base import Evidence
from prunecli.methods.control import Ramp, smallest
from prunecli.methods.hook import Batch, Course, Hook
from prunecli.methods.magnitude import Magnitude
from prunecli.methods.masks import Mask, MaskedReader, MaskedWeight
from prunecli.methods.scope import ranks
from prunecli.methods.widths import excluding, widths_of
from prunecli.methods.wrapping import bake, wrap
from prunecli.recipe.schema import Budget, Train
from prunecli.surgery.probe import insist_on_free

if TYPE_CHECKING:
    from prunecli.methods.gumbel import GumbelMasks

_WIDEST = 80.0  # beyond this a chance is 0 or 1


class Masks(Hook):
    """What masks over weights and over channels have in common.

    Args:
        method: the fields of the recipe.
    """

    keeps_best = False
    settles = True

    def __init__(self, method: GumbelMasks) -> None:
        self._method = method
        self._found: dict[str, float] = {}
        self._now: dict[str, float] = {}

    def masks(self) -> Sequence[Mask]:
        """All of the model."""
        raise NotImplementedError

    def optimizer(self, module: nn.Module, settings: Train) -> torch.optim.Optimizer:
        """SGD for the logits and for the factors; nothing else is learned."""
        del settings
        logits = [mask.logits for mask in self.masks()]
        known = {id(tensor) for tensor in logits}
        factors = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": logits, "lr": self._method.rate}, {"params": factors, "lr": self._method.rescale_lr}]
        return torch.optim.SGD([{**group, "scheduled": False} for group in groups], momentum=0.9)

    def loss(self, task: Callable[[], Tensor], forward: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """Each batch sees a network of its own."""
        del forward, batch
        for mask in self.masks():
            mask.draw()
        return task()

    def figures(self) -> Mapping[str, float]:
        """Where the control is."""
        return self._now

    def outcomes(self) -> Mapping[str, float]:
        """What was met, and the share of the masks that was nearly certain at the end."""
        return self._found

    def start(self, scores: Tensor) -> Tensor:
        """Logits of the scores' shape."""
        if self._method.init == "zero":
            return torch.zeros_like(scores)
        places = (ranks(scores) + 0.5 / scores.numel()).to(scores.dtype)
        return self._method.confidence * places.logit()

    def certain(self) -> float:
        """Share of chances below 5 or above 95 %."""
        chances = torch.cat([mask.chances().flatten() for mask in self.masks()])
        return float(((chances < 0.05) | (chances > 0.95)).double().mean())

    def shift(self, offset: float) -> None:
        """Give all masks one offset."""
        for mask in self.masks():
            mask.offset.fill_(offset)


class WeightMasks(Masks):
    """A mask on each of some weights.

    Args:
        method: the fields of the recipe.
        weights: names of the weights.
        sparsity: share of zeros among them at the end; None keeps what is at least as likely as not.
    """

    def __init__(self, method: GumbelMasks, weights: Sequence[str], sparsity: float | None) -> None:
        super().__init__(method)
        self._names = list(weights)
        self._sparsity = sparsity

    def attach(self, module: nn.Module, course: Course) -> None:
        """Everything is frozen but the masks."""
        self._ramp = Ramp(self._sparsity or 0.0, self._method.ramp, course.steps)
        module.requires_grad_(False)
        self._layers: dict[str, MaskedWeight] = {}
        for name in self._names:
            weight = module.get_parameter(name)
            if self._method.signed_constant:
                weight.data = weight.sign() * weight.std()
            masked = MaskedWeight(Mask(self.start(weight.detach().abs()), self._method.tau), weight)
            wrap(module, name, masked)
            self._layers[name] = masked

    def masks(self) -> Sequence[Mask]:
        """One for each weight."""
        return [layer.mask for layer in self._layers.values()]

    def predictions(self) -> Mapping[str, float]:
        """The sparsity, where one is asked."""
        return {} if self._sparsity is None else {"sparsity": self._sparsity}

    def after_step(self, module: nn.Module, step: int) -> None:
        """The expected sparsity follows the ramp."""
        del module
        if not self._ramp.due(step):
            return
        if self._sparsity is not None:
            target = self._ramp.at(step)
            self.shift(smallest(lambda offset: 1 - self._kept(offset) <= target, -_WIDEST, _WIDEST))
        self._now = {"sparsity": 1 - self._kept(None)}

    def _kept(self, offset: float | None) -> float:
        """The expected share of weights that stay."""
        chances = [mask.chances(offset) for mask in self.masks()]
        return sum(float(c.sum(dtype=torch.float64)) for c in chances) / sum(c.numel() for c in chances)

    def finalize(self, module: nn.Module) -> None:
        """The weights with the largest logits stay, as many as the budget says; factors go into the weights."""
        certain = self.certain()
        logits = torch.cat([mask.logits.detach().flatten() for mask in self.masks()])
        if self._sparsity is None:
            kept = logits >= 0
        else:
            kept = torch.ones_like(logits, dtype=torch.bool)
            kept[logits.argsort(stable=True)[: math.ceil(self._sparsity * len(logits) - 1e-6)]] = False
        for mask, own in zip(self.masks(), kept.split([m.logits.numel() for m in self.masks()]), strict=True):
            mask.decide(own.reshape(mask.logits.shape))
        bake(module, self._names)
        self._found = {"sparsity": 1 - float(kept.double().mean()), "certain": certain}


class ChannelMasks(Masks):
    """One mask on all channels that may go, applied to the weights that read them.

    Args:
        method: the fields of the recipe.
        budget: FLOPs or params that may be left.
    """

    def __init__(self, method: GumbelMasks, budget: Budget) -> None:
        super().__init__(method)
        self._budget = budget

    def attach(self, module: nn.Module, course: Course) -> None:
        """Everything is frozen but the mask.

        Raises:
            InputError: no channel may go, or the budget is impossible.
        """
        fields = self._method
        bare = moved(module, "cpu").eval()
        restrict = excluding(bare, fields.exclude)
        self._widths = widths_of(bare, course.example, self._budget, restrict, fields.min_channels)
        insist_on_free(self._widths.channels)
        evidence = Evidence(bare, course.example, 0)
        scores = Magnitude(name="magnitude").channel_scores(evidence, self._widths.channels)
        self._widths.choose(scores)  # an impossible budget is refused before anything is trained
        self._free = np.flatnonzero(self._widths.free)
        self._ramp = Ramp(1 - self._widths.target, fields.ramp, course.steps)
        module.requires_grad_(False)
        self._mask = Mask(self.start(torch.from_numpy(scores[self._free]).to(home(module))), fields.tau)
        place = np.full(self._widths.channels.count, len(self._free))
        place[self._free] = np.arange(len(self._free))
        self._readers = self._widths.readers()
        for reader in self._readers:
            owner, _, attribute = reader.name.rpartition(".")
            weight = getattr(module.get_submodule(owner), attribute)  # one that reads along two dims is masked twice
            masked = MaskedReader(self._mask, torch.from_numpy(place[reader.channels]), reader.dim, weight)
            wrap(module, reader.name, masked)

    def masks(self) -> Sequence[Mask]:
        """The one mask."""
        return [self._mask]

    def predictions(self) -> Mapping[str, float]:
        """The share that is left."""
        return {self._widths.unit: self._widths.target}

    def after_step(self, module: nn.Module, step: int) -> None:
        """The expected cost follows the ramp."""
        del module
        if self._ramp.due(step):
            target = 1 - self._ramp.at(step)
            self.shift(smallest(lambda offset: self._left(offset) >= target, -_WIDEST, _WIDEST))
            self._now = {self._widths.unit: self._left(None)}

    def _left(self, offset: float | None) -> float:
        """The cost of the chances, as a share."""
        kept = np.ones(self._widths.channels.count)
        kept[self._free] = self._mask.chances(offset).cpu().double().numpy()
        return self._widths.left(kept)

    def finalize(self, module: nn.Module) -> None:
        """The channels with the largest logits stay, as the budget says; factors go into the weights."""
        certain = self.certain()
        scores = np.zeros(self._widths.channels.count)
        scores[self._free] = self._mask.logits.detach().cpu().double().numpy()
        removed = self._widths.choose(scores)
        self._mask.decide(torch.from_numpy(~removed[self._free]).to(self._mask.logits.device))
        bake(module, [reader.name for reader in self._readers])
        self._found = {self._widths.unit: self._widths.left(~removed), "certain": certain}
