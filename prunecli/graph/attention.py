"""`nn.MultiheadAttention` as the matrix products that it is.

So it stands on every tape, and so it computes where its heads do not fill its embedding, which torch's own forward
refuses.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainAttention(nn.MultiheadAttention):
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
        projected = self._projected([t if first else t.transpose(0, 1) for t in inputs])
        q, k, v = (t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in projected)
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        for given in (_spread(attn_mask, scores), _over_keys(key_padding_mask)):
            if given is not None:
                mask = F.pad(given, (0, scores.shape[-1] - given.shape[-1]))  # keys that torch adds are for everyone
                scores = scores.masked_fill(mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        mixed = F.linear((weights @ v).transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        mixed = mixed if first else mixed.transpose(0, 1)
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if batched:
            return mixed, shown
        return mixed.squeeze(0 if first else 1), None if shown is None else shown.squeeze(0)

    def _projected(self, inputs: list[Tensor]) -> list[Tensor]:
        """(N, L, width) of each input as (N, L, heads * head_dim) queries, keys and values."""
        weights = self._weights()
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:  # one key and value more
            k, v = (torch.cat([t, b.expand(len(t), 1, -1)], 1) for t, b in ((k, self.bias_k), (v, self.bias_v)))
        return [q, k, v]

    def _weights(self) -> tuple[Tensor, ...]:
        """Those of queries, keys and values: one tensor in parts, or one for each."""
        if self.in_proj_weight is not None:
            return self.in_proj_weight.chunk(3)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight


def _spread(mask: Tensor | None, scores: Tensor) -> Tensor | None:
    """(L, S) or (N * heads, L, S) against scores (N, heads, L, S)."""
    return mask.reshape(*scores.shape[:-1], -1) if mask is not None and mask.ndim == 3 else mask


def _over_keys(mask: Tensor | None) -> Tensor | None:
    """(N, S) or (S,) against scores (N, heads, L, S)."""
    return mask if mask is None else mask.reshape(-1, 1, 1, mask.shape[-1])


def in_parts(parts: Iterable[nn.Module]) -> None:
    """Exchange the class of all attention of torch's own: the same numbers by other ops."""
    for part in parts:
        if type(part) is nn.MultiheadAttention:
            part.__class__ = PlainAttention


def allow_fewer_heads(parts: Iterable[nn.Module]) -> None:
    """Exchange the class of every attention that is narrower than its embedding."""
    for part in parts:
        if type(part) is not nn.MultiheadAttention:
            continue
        width = part.embed_dim
        whole = part.in_proj_weight is None or part.in_proj_weight.shape == (3 * width, width)
        separate = part.q_proj_weight is None or part.q_proj_weight.shape == (width, width)
        if not (whole and separate):
            part.__class__ = PlainAttention
            part._qkv_same_embed_dim = False  # keeps torch's fused encoder layers away
