"""`nn.MultiheadAttention` whose heads do not fill its embedding, which torch's own forward refuses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FewerHeads(nn.MultiheadAttention):
    """Attention with `num_heads` heads of width `head_dim`, whatever the width of the embedding."""

    def forward(  # noqa: PLR0913, PLR0917 - torch's own signature
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: (L, N, E) or (N, L, E), without a batch (L, E); masks bool or additive.

        `is_causal` is only a hint there, beside the mask that says so, and is not needed here.
        """
        del is_causal
        batched, first = query.ndim == 3, self.batch_first
        inputs = [t if batched else t.unsqueeze(0 if first else 1) for t in (query, key, value)]
        heads = [self._heads(t if first else t.transpose(0, 1), number) for number, t in enumerate(inputs)]
        q, k, v = heads
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        for mask in (_spread(attn_mask, scores), _over_keys(key_padding_mask)):
            if mask is not None:
                scores = scores.masked_fill(mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        mixed = mixed if first else mixed.transpose(0, 1)
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if batched:
            return mixed, shown
        return mixed.squeeze(0 if first else 1), None if shown is None else shown.squeeze(0)

    def _heads(self, x: Tensor, number: int) -> Tensor:
        """(N, L, E) as (N, heads, L, head_dim) of the queries, keys or values."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        part = None if bias is None else bias.chunk(3)[number]
        projected = F.linear(x, weight.chunk(3)[number], part)
        return projected.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)


def _spread(mask: Tensor | None, scores: Tensor) -> Tensor | None:
    """(L, S) or (N * heads, L, S) against scores (N, heads, L, S)."""
    return mask.reshape(scores.shape) if mask is not None and mask.ndim == 3 else mask


def _over_keys(mask: Tensor | None) -> Tensor | None:
    """(N, S) or (S,) against scores (N, heads, L, S)."""
    return mask if mask is None else mask.reshape(-1, 1, 1, mask.shape[-1])


def allow_fewer_heads(parts: Iterable[nn.Module]) -> None:
    """Exchange the class of every attention that is narrower than its embedding; what it cannot do stays as it is."""
    for part in parts:
        if type(part) is not nn.MultiheadAttention or part.in_proj_weight is None:
            continue
        plain = part.bias_k is None and not part.add_zero_attn
        if plain and part.in_proj_weight.shape != (3 * part.embed_dim, part.embed_dim):
            part.__class__ = FewerHeads
            part._qkv_same_embed_dim = False  # keeps torch's fused encoder layers away
