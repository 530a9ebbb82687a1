"""Copies of modules."""

from __future__ import annotations

import torch
from torch import nn

from prunecli.graph.copying import aligned, copied


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


def test_a_copy_has_states_of_its_own_and_no_compiled_forward() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect"), nn.LSTM(4, 5)).eval()
    module[0]._compiled_call_impl = object()  # what `Module.compile` leaves
    twin = copied(module)
    assert twin[0]._compiled_call_impl is None
    assert twin[0].padding_mode == "reflect"
    assert twin[1]._flat_weights[0] is twin[1].weight_ih_l0 is not module[1].weight_ih_l0
    twin[0].register_forward_hook(lambda *_: None)
    assert not module[0]._forward_hooks
    assert not twin[0].training
