"""Heads that learn which channels an image needs, and the choices that make them meet a FLOPs budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunecli.checkpoint.journal import Journal
from prunecli.cost.count import flops
from prunecli.cost.dynamic import dynamic_cost, masks_of
from prunecli.errors import InputError
from prunecli.graph.channels import trace
from prunecli.graph.copying import copied, moved
from prunecli.methods.base import select
from prunecli.methods.control import Ramp, bracket, largest
from prunecli.methods.hook import Batch, Course, Hook
from prunecli.recipe.schema import Train
from prunecli.surgery.gates import Gated, candidates, gates_of, install

if TYPE_CHECKING:
    from prunecli.methods.ftwt import FireTogether

SLACK = 1e-5  # of the cumulated share, as in the authors' code
FARTHEST = 1e9  # how far heads are shifted at most
GAIN = 2.0  # by how much logits are shifted where all of the FLOPs are too many


def heaviest(output: Tensor, r: float) -> Tensor:
    """The channels of each image that together hold at most the share r of the activation, and at least one.

    A channel's activation is its largest absolute value; r = 1 drops only channels that are zero everywhere. Where all
    are zero none is needed, and the first is kept.

    Args:
        output: (N, C, H, W).
        r: in (0, 1].

    Returns:
        (N, C) of zeros and ones in the output's dtype.
    """
    height = output.abs().flatten(2).amax(2)
    share = height / height.sum(1, keepdim=True).clamp_min(torch.finfo(height.dtype).tiny)
    if r == 1:
        kept = share > SLACK
    else:
        order = share.argsort(dim=1, descending=True, stable=True)
        within = share.gather(1, order).cumsum(1) - r <= SLACK
        kept = torch.zeros_like(within).scatter(1, order, within)
    first = F.one_hot(share.argmax(1), share.shape[1]).bool()
    return (kept & (share > 0) | first).to(output.dtype)


class Standardised(nn.Linear):
    """A head that learns on inputs of mean 0 and deviation 1; a plain layer computes the same.

    Attributes:
        mean, deviation: (in,) of the inputs before training.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, outputs: int) -> None:
        super().__init__(len(mean), outputs, device=mean.device, dtype=mean.dtype)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", torch.where(deviation > 0, deviation, 1))
        nn.init.zeros_(self.weight)
        nn.init.ones_(self.bias)  # every channel is asked for: the network is the dense one

    def forward(self, input: Tensor) -> Tensor:
        """(N, in) -> (N, out) logits."""
        return super().forward((input - self.mean) / self.deviation)

    @torch.no_grad()
    def plain(self) -> nn.Linear:
        """The same function."""
        layer = nn.Linear(self.in_features, self.out_features, device=self.weight.device, dtype=self.weight.dtype)
        layer.weight.copy_(self.weight / self.deviation)
        layer.bias.copy_(self.bias - layer.weight @ self.mean)
        return layer


class Gating(Hook):
    """Gates with heads on the convolutions of a model.

    Args:
        method: the fields of the recipe.
        share: of the FLOPs that is left in the mean, or their number; None takes r as it is.
    """

    keeps_best = False

    def __init__(self, method: FireTogether, share: float | None) -> None:
        self._method = method
        self._share = share
        self._shift = 0.0
        self._found: dict[str, float] = {}
        self._now: dict[str, float] = {}

    def attach(self, module: nn.Module, course: Course) -> None:
        """Gate what can be gated, and find r.

        Raises:
            InputError: nothing can be gated, or no r meets the budget.
        """
        bare = moved(module, "cpu").eval()
        excluded = select(self._method.exclude, [name for name, _ in bare.named_modules() if name])
        found = [known for known in candidates(bare, course.example) if known.gate.conv not in excluded]
        if not found:
            raise InputError(
                "no convolution can be gated: it must lie behind the first layer, be called once, with a weight that "
                "nothing else reads, and have an activation behind it that leaves zero at zero",
                hint="prunecli prune with a method that removes channels",
            )
        self._images = list(course.images(self._method.images))
        channels = trace(bare, course.example)
        self._whole = float(flops(channels)(np.ones(channels.count, dtype=np.bool_)))
        if self._share is not None and self._share > 1:  # an absolute amount
            self._share /= self._whole
        self._gates = tuple(known.gate for known in found)
        self._activations = {known.gate.conv: known.activation for known in found}
        install(module, self._gates)
        self._layers = {name: layer for name, layer in gates_of(module).items() if name in self._activations}
        self._standardise(module)
        self._cost = dynamic_cost(copied(module).eval(), course.example)
        self._r = self._method.r or self._meeting(module)
        self._predicted = {"r": self._r, "flops": self._left(module, self._r)}
        for layer in self._layers.values():
            layer.watched, layer.joint = True, self._method.mode == "joint"
        self._freeze_at = round(self._method.heads_until * course.steps)
        self._ramp = Ramp(1 - (self._share or 1.0), self._method.heads_until, course.steps)

    @property
    def journal(self) -> Journal:
        """The gates."""
        return Journal(gates=self._gates)

    def optimizer(self, module: nn.Module, settings: Train) -> torch.optim.Optimizer:
        """SGD for the network as the recipe says, and for the heads.

        Raises:
            InputError: the recipe asks for another optimizer.
        """
        if settings.optimizer != "sgd":
            raise InputError(f"ftwt trains by sgd, not {settings.optimizer}", hint="train.optimizer: sgd")
        heads = [p for layer in self._layers.values() for p in layer.head.parameters()]
        known = {id(p) for p in heads}
        rest = [p for p in module.parameters() if id(p) not in known and p.requires_grad]
        groups = [
            {"params": rest, "momentum": settings.momentum, "weight_decay": settings.weight_decay},
            {"params": heads, "lr": self._method.head_lr, "momentum": 0.9, "scheduled": False},
        ]
        self._optimizer = torch.optim.SGD(groups, settings.lr)
        return self._optimizer

    def loss(self, task: Callable[[], Tensor], forward: Callable[[Tensor], Any], batch: Batch) -> Tensor:
        """That of the recipe, and the cross entropy of every head against what was heaviest (section 3.2).

        Summed over channels, mean over images and layers, as in the authors' code.
        """
        del forward
        loss = task()
        entropies, open_now = [], []
        for name, layer in self._layers.items():
            assert layer.seen is not None
            assert layer.mask is not None
            logits, output = layer.seen
            target = heaviest(self._activations[name](output.detach()), self._r)
            entropy = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="sum")
            entropies.append(entropy / len(batch.images))
            open_now.append(layer.mask.mean())
            layer.seen = layer.mask = None
        self._now |= {"open": float(torch.stack(open_now).mean())}
        return loss + self._teaching * torch.stack(entropies).mean()

    def after_step(self, module: nn.Module, step: int) -> None:
        """Heads stay as they are from some step on, so that the network can follow them.

        What is open follows a ramp to the budget, which ends when the heads are done: from then on the network learns
        with as many channels as it will have.
        """
        if step == self._freeze_at:
            self._heads["lr"] = 0.0
        if self._share is not None and self._ramp.due(step):
            left = self._mean(module, self._images[:1])  # one batch is enough to steer by
            self._shift -= GAIN * (left - (1 - self._ramp.at(step)))
            self._now |= {"flops": left}
            self._hand_on()

    def _hand_on(self) -> None:
        for layer in self._layers.values():
            layer.shift = torch.tensor(self._shift)

    def state(self) -> dict[str, Any]:
        """The shift."""
        return {"shift": self._shift}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._shift = state["shift"]
        self._hand_on()

    @property
    def _teaching(self) -> float:
        """1 while the heads learn, else 0."""
        return float(self._heads["lr"] > 0)

    @property
    def _heads(self) -> dict[str, Any]:
        """Their group in the optimizer, which is saved with it."""
        group: dict[str, Any] = self._optimizer.param_groups[1]
        return group

    def figures(self) -> Mapping[str, float]:
        """The mean share of open channels, and of the FLOPs that are left."""
        return self._now

    def predictions(self) -> Mapping[str, float]:
        """r, and the FLOPs that are left in the mean with perfect heads."""
        return self._predicted

    def finalize(self, module: nn.Module) -> None:
        """Shift all heads so that the budget is met; channels that no image asks for are zeroed for good."""
        for layer in self._layers.values():
            head: Any = layer.head
            layer.head, layer.watched, layer.seen, layer.mask = head.plain(), False, None, None
            layer.shift = None
        biases: list[Any] = [layer.head.bias for layer in self._layers.values()]
        _move(biases, [bias.detach().clone() for bias in biases], self._shift)
        self._found = {"flops before the last shift": self._mean(module, self._images)}
        start = [bias.detach().clone() for bias in biases]

        def within(shift: float) -> bool:
            _move(biases, start, shift)
            return self._mean(module, self._images) <= (self._share or 1.0)

        if self._share is not None:
            _move(biases, start, largest(within, *bracket(within, 1.0, FARTHEST)))
        masks = masks_of(module, self._images)
        for name, layer in self._layers.items():
            close(layer, torch.from_numpy(~masks[name].any(0)))
        self._found["flops"] = float(self._cost(masks).mean()) / self._whole
        self._found["never open"] = float(np.mean(np.concatenate([~mask.any(0) for mask in masks.values()])))

    def outcomes(self) -> Mapping[str, float]:
        """The FLOPs that are left in the mean with the learned heads, and the share of channels nobody asks for."""
        return self._found

    @torch.no_grad()
    def _standardise(self, module: nn.Module) -> None:
        """Give every gate a head for inputs as they are now."""
        sums: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        handles = [
            layer.register_forward_pre_hook(lambda _, args, name=name: sums[name].append(args[0].mean((2, 3))))
            for name, layer in self._layers.items()
        ]
        training = module.training
        module.eval()
        for images in self._images:
            module(images)
        module.train(training)
        for handle in handles:
            handle.remove()
        for name, layer in self._layers.items():
            seen, conv = torch.cat(sums[name]), layer.conv
            assert isinstance(conv, nn.Conv2d)
            layer.head = Standardised(seen.mean(0), seen.std(0), conv.out_channels)

    def _meeting(self, module: nn.Module) -> float:
        """The largest r whose masks meet the budget.

        Raises:
            InputError: not even one channel of every layer does.
        """
        share, least = self._share or 1.0, self._left(module, SLACK)
        if least > share:
            raise InputError(
                f"the flops budget {share:.2%} cannot be met: one channel of every gated layer leaves {least:.2%}",
                hint=f"keep {least:.2%} or more",
            )
        return largest(lambda r: self._left(module, r) <= share, SLACK, 1.0)

    def _left(self, module: nn.Module, r: float) -> float:
        """The share of FLOPs that is left in the mean where every mask is the target itself."""
        for name, layer in self._layers.items():
            activation = self._activations[name]
            layer.oracle = lambda output, activation=activation: heaviest(activation(output), r)
        left = self._mean(module, self._images)
        for layer in self._layers.values():
            layer.oracle = None
        return left

    def _mean(self, module: nn.Module, images: Sequence[Tensor]) -> float:
        return float(self._cost(masks_of(module, images)).mean()) / self._whole


@torch.no_grad()
def _move(biases: Sequence[Any], start: Sequence[Tensor], shift: float) -> None:
    for bias, old in zip(biases, start, strict=True):
        bias.copy_(old + shift)


@torch.no_grad()
def close(layer: Gated, channels: Tensor) -> None:
    """Zero all that computes some channels, (C,) bool, and see that they are never asked for."""
    parts: list[Any] = [layer.conv, layer.norm, layer.head]
    for tensor in (t for part in parts for t in (getattr(part, "weight", None), getattr(part, "bias", None))):
        if tensor is not None:
            tensor[channels.to(tensor.device)] = 0
    parts[2].bias[channels.to(parts[2].bias.device)] = -1
