"""Masks that are sampled while they are learned, as parametrizations of weights that stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Sampled(torch.autograd.Function):
    """``1[x > 0]`` forward, ``sigmoid(x / tau)`` backward: the straight-through Gumbel-Softmax of two classes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float) -> Tensor:
        """x is logit plus noise, of any shape."""
        ctx.save_for_backward(x)
        ctx.tau = tau
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """``q (1 - q) / tau``."""
        (x,) = ctx.saved_tensors
        q = torch.sigmoid(x / ctx.tau)
        return grads[0] * q * (1 - q) / ctx.tau, None


def sample(logits: Tensor, tau: float) -> Tensor:
    """A mask of the logits' shape, 1 with chance ``sigmoid(logit)`` at every temperature (paper, section 3)."""
    noise = torch.rand_like(logits).logit()  # the difference of two Gumbels is logistic
    sampled: Tensor = Sampled.apply(logits + noise, tau)
    return sampled


class Mask(nn.Module):
    """Logits of a mask; sampled in training, the more likely of the two else.

    Attributes:
        logits: learned.
        offset: added to every logit by the control.
    """

    offset: Tensor

    def __init__(self, logits: Tensor, tau: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.register_buffer("offset", torch.zeros((), dtype=logits.dtype, device=logits.device))
        self._tau = tau
        self._sample: Tensor | None = None

    def draw(self) -> None:
        """The next forward pass samples anew; all weights that share the mask see one sample."""
        self._sample = None

    def forward(self) -> Tensor:
        """Of the logits' shape."""
        shifted = self.logits + self.offset
        if not self.training:
            return (shifted >= 0).to(shifted.dtype)
        drawn = sample(shifted, self._tau) if self._sample is None else self._sample
        self._sample = drawn
        return drawn

    def chances(self, offset: float | None = None) -> Tensor:
        """That a weight or channel is kept, also with another offset."""
        shift = self.offset if offset is None else offset
        return torch.sigmoid(self.logits.detach() + shift)

    @torch.no_grad()
    def decide(self, kept: Tensor) -> None:
        """Fix the mask for good."""
        self.draw()
        self.offset.zero_()
        self.logits.copy_(torch.where(kept, 1.0, -1.0))
        self.eval()


class MaskedWeight(nn.Module):
    """``r m w``: the parametrization of one weight that stays as it is.

    Attributes:
        mask: of the weight's shape.
        rescale: r, learned; one for the layer.
    """

    def __init__(self, mask: Mask, like: Tensor) -> None:
        super().__init__()
        self.mask = mask
        self.rescale = nn.Parameter(torch.ones((), dtype=like.dtype, device=like.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses."""
        mask: Tensor = self.mask()
        return self.rescale * (mask * weight)


class MaskedReader(nn.Module):
    """``r m_c w``: the parametrization of a weight that reads masked channels along one dim.

    Attributes:
        mask: of the channels that may go, shared by all that read them.
        rescale: r, learned; one for the layer.
        members: for each position of the dim its place in the mask; the place behind the last stands for channels
            that stay.
    """

    members: Tensor

    def __init__(self, mask: Mask, members: Tensor, dim: int, like: Tensor) -> None:
        super().__init__()
        self.mask = mask
        self.rescale = nn.Parameter(torch.ones((), dtype=like.dtype, device=like.device))
        self.register_buffer("members", members.to(like.device), persistent=False)
        self._shape = [-1 if d == dim else 1 for d in range(like.ndim)]

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses."""
        known = self.mask()
        mask = torch.cat([known, known.new_ones(1)])[self.members]
        return self.rescale * (mask.reshape(self._shape) * weight)
