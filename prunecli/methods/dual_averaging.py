"""Generalized regularized dual averaging (gRDA): directional pruning by an optimizer (Chao et al. 2020, 2006.09358)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.graph.copying import copied
from prunecli.methods.control import Ramp
from prunecli.methods.hook import Course, Hook
from prunecli.methods.path import barrier
from prunecli.recipe.schema import Train


def increment(c: float, mu: float, rate: float, step: int) -> float:
    """By how much the threshold grows with step number `step`, the first being 1: ``c r^(1/2+mu) (n^mu - (n-1)^mu)``.

    Over steps of one rate they add up to ``c sqrt(r) (n r)^mu`` (equation 5).
    """
    return float(c * rate ** (0.5 + mu) * (step**mu - (step - 1) ** mu))


class GRDA(torch.optim.Optimizer):
    """Stochastic gradient descent on an accumulator; the weights are what a growing soft threshold leaves of it.

    ``v_n = v_{n-1} - r grad L(w_{n-1})``, ``w_n = sign(v_n) relu(|v_n| - g_n)``, ``v_0 = w_0``. There is no momentum
    and no weight decay. With ``c = 0`` it is SGD, and keeps no accumulator.

    Args:
        params: tensors or groups; each group may have its own `lr`, `c` and `mu`.
        lr: learning rate r; thresholds never fall when it does.
        c: scale of the threshold, at least 0.
        mu: how fast it grows, in (0, 1).

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, params: Iterable[Any], lr: float, c: float = 0.005, mu: float = 0.55) -> None:
        if lr < 0 or c < 0 or not 0 < mu < 1:
            raise ValueError(f"lr {lr}, c {c} must be at least 0, mu {mu} between 0 and 1")
        super().__init__(params, {"lr": lr, "c": c, "mu": mu, "step": 0, "threshold": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. All weights of a group share one threshold."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] += 1
            group["threshold"] += increment(group["c"], group["mu"], group["lr"], group["step"])
            learned = [p for p in group["params"] if p.grad is not None]
            if not learned:
                continue
            gradients = [p.grad for p in learned if p.grad is not None]
            if group["threshold"] == 0:
                torch._foreach_add_(learned, gradients, alpha=-group["lr"])
                continue
            sums = [self._sum_of(p) for p in learned]
            torch._foreach_add_(sums, gradients, alpha=-group["lr"])
            shrink(learned, sums, group["threshold"])
        return loss

    def _sum_of(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "sum" not in state:
            state["sum"] = weight.detach().clone()
        total: Tensor = state["sum"]
        return total

    def sums(self, group: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """The weights of a group with their accumulators."""
        return ((weight, self._sum_of(weight)) for weight in group["params"])


@torch.no_grad()
def shrink(weights: list[Tensor], sums: list[Tensor], threshold: float) -> None:
    """``w = sign(v) relu(|v| - g)``, in place and without another copy: ``v - clamp(v, -g, g)``."""
    torch._foreach_copy_(weights, sums)
    torch._foreach_clamp_min_(weights, -threshold)
    torch._foreach_clamp_max_(weights, threshold)
    torch._foreach_sub_(weights, sums)
    torch._foreach_mul_(weights, -1.0)


class DualAveraging(Hook):
    """The optimizer on some weights of a model, with a threshold that ends where the asked sparsity is.

    Args:
        weights: names of the weights that it thresholds; the others, biases and norms, are trained by plain SGD.
        sparsity: share of zeros among them at the end; None takes `c` as it is.
        c: scale of the threshold; None finds it.
        mu: growth of the threshold.
        scanned: images that the path between the model before and after is scanned on.
    """

    keeps_best = False
    settles = True

    def __init__(
        self, weights: Sequence[str], sparsity: float | None, c: float | None, mu: float, scanned: int
    ) -> None:
        self._names = frozenset(weights)
        self._sparsity = sparsity
        self._c = c or 0.0
        self._mu = mu
        self._scanned = scanned
        self._ramp = Ramp(sparsity or 0.0, 1.0, 1)
        self._now: dict[str, float] = {}
        self._predicted: dict[str, float] = {}
        self._found: dict[str, float] = {}

    def attach(self, module: nn.Module, course: Course) -> None:
        """Choose the scale of the threshold: the weights as they are would end at the asked sparsity."""
        self._course = course
        self._before = copied(module).eval()
        self._ramp = Ramp(self._sparsity or 0.0, 1.0, course.steps)
        weights = [p.detach() for name, p in module.named_parameters() if name in self._names]
        if self._sparsity is not None:
            self._c = self._scale(quantile(weights, self._sparsity), 0.0, 0)
        self._predicted = {"threshold": self._c * self._growth(0)}
        if self._sparsity is not None:
            self._predicted["sparsity"] = self._sparsity

    def optimizer(self, module: nn.Module, settings: Train) -> GRDA:
        """Two groups: the thresholded weights, and the rest."""
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._optimizer = GRDA(
            [
                {"params": [p for name, p in named if name in self._names], "c": self._c},
                {"params": [p for name, p in named if name not in self._names], "c": 0.0},
            ],
            settings.lr,
            mu=self._mu,
        )
        return self._optimizer

    def after_step(self, module: nn.Module, step: int) -> None:
        """Correct the scale: the accumulators have moved since the prediction."""
        del module
        if not self._ramp.due(step):
            return
        group = self._optimizer.param_groups[0]
        sums = [total for _, total in self._optimizer.sums(group)]
        if self._sparsity is not None and step < self._course.steps:
            group["c"] = self._scale(quantile(sums, self._sparsity), group["threshold"], step)
        self._now = {"sparsity": zeros(group["params"]), "threshold": group["threshold"]}

    def figures(self) -> Mapping[str, float]:
        """Sparsity and threshold."""
        return self._now

    def predictions(self) -> Mapping[str, float]:
        """The threshold at the end."""
        return self._predicted

    def finalize(self, module: nn.Module) -> None:
        """The last correction meets the sparsity to the weight."""
        group = self._optimizer.param_groups[0]
        pairs = list(self._optimizer.sums(group))
        weights, sums = [weight for weight, _ in pairs], [total for _, total in pairs]
        if self._sparsity is not None:
            group["threshold"] = quantile(sums, self._sparsity)
            shrink(weights, sums, group["threshold"])
        self._found = {"threshold": group["threshold"], "sparsity": zeros(weights)}
        if self._scanned:
            self._found["barrier"] = barrier(self._before, module, list(self._course.labelled(self._scanned)))

    def outcomes(self) -> Mapping[str, float]:
        """Threshold, sparsity, and by how much the loss rises between the model before and after."""
        return self._found

    def state(self) -> dict[str, Any]:
        """The scale is in the optimizer."""
        return {"before": self._before.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self._before.load_state_dict(state["before"])

    def _growth(self, step: int) -> float:
        """By how much a scale of 1 lets the threshold grow after `step`."""
        rates = self._course.rates
        return sum(increment(1.0, self._mu, rates[n], n + 1) for n in range(step, len(rates)))

    def _scale(self, wanted: float, reached: float, step: int) -> float:
        """The scale with which the threshold ends where it should."""
        growth = self._growth(step)
        return max(0.0, wanted - reached) / growth if growth > 0 else 0.0


def quantile(weights: Sequence[Tensor], share: float) -> float:
    """The least threshold that makes this share of all weights zero."""
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    count = math.ceil(share * len(sizes) - 1e-6)
    return float(sizes.kthvalue(count).values) if count else 0.0


def zeros(weights: Sequence[Tensor]) -> float:
    """Share of zeros."""
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
