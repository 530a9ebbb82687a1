"""Batch norm in one op: on a tape it is what torch calls, less an empty tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunecli.graph import tape
from prunecli.graph.tape import Example, ForwardError, Op, record

LAYERS = {
    "images": (nn.BatchNorm2d(4), (2, 4, 3, 3)),
    "rows": (nn.BatchNorm1d(4), (2, 4)),
    "volumes": (nn.BatchNorm3d(4), (2, 4, 2, 2, 2)),
    "no scale": (nn.BatchNorm2d(4, affine=False), (2, 4, 3, 3)),
    "a mean over all batches": (nn.BatchNorm2d(4, momentum=None), (2, 4, 3, 3)),
    "statistics of the batch": (nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 3, 3)),
}


def calls(layer: nn.Module, shape: tuple[int, ...], *, train: bool) -> list[tuple[object, ...]]:
    """All calls but those that make an empty tensor, with the shapes of what they get and give."""
    found = record(nn.Sequential(nn.Identity(), layer), Example((torch.zeros(shape),)), train=train)

    def told(op: Op) -> tuple[object, ...]:
        shapes = [found.shapes[ref.index] for ref in op.refs], [found.shapes[index] for index in op.outputs]
        return op.name, op.module, shapes, [arg for arg in op.args if isinstance(arg, bool | int | float)]

    return [told(op) for op in found.ops if op.name != "aten.empty"]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_op_that_torch_calls(name: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = LAYERS[name]
    found = calls(layer, shape, train=train)
    emptied = [op.name for op in record(layer, Example((torch.zeros(shape),))).ops].count("aten.empty")
    assert emptied == (name == "statistics of the batch")  # which is for torch to do
    monkeypatch.setattr(tape, "in_one_op", lambda parts: None)
    assert found == calls(layer, shape, train=train)
    assert type(layer).__module__ == "torch.nn.modules.batchnorm"


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4, 3, 3, 3), (2, 5, 3, 3)])
def test_it_refuses_what_torch_refuses(shape: tuple[int, ...]) -> None:
    layer = nn.BatchNorm2d(4).eval()
    with pytest.raises((ValueError, RuntimeError)):
        layer(torch.zeros(shape))
    with pytest.raises(ForwardError):
        record(layer, Example((torch.zeros(shape),)))
