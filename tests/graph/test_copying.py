"""Copies of modules."""

from __future__ import annotations

import torch
from torch import nn

from prunecli.graph.copying import aligned


def test_aligned_copies_share_what_lies_where_torch_would_put_it() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(13, 7), nn.Linear(7, 7), nn.BatchNorm1d(7)).eval()
    module[1].bias = module[0].bias
    moved = torch.empty(7 * 13 + 1)[1:].view(7, 13).copy_(module[0].weight.detach())
    module[0].weight = nn.Parameter(moved, requires_grad=False)
    twin = aligned(module)
    assert twin[0].weight.data_ptr() != module[0].weight.data_ptr()
    assert twin[0].weight.data_ptr() % 64 == 0
    assert not twin[0].weight.requires_grad
    assert torch.equal(twin[0].weight, module[0].weight)
    assert twin[1].bias is twin[0].bias is module[0].bias
    assert twin[2].running_mean is module[2].running_mean
