"""fvcore's count of the finished model, the figure that reports state; where it cannot trace, ours on the tape."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.cost.count import flops_on
from prunecli.graph.tape import Example, ForwardError, output_tensors, record


def count_flops(module: nn.Module, example: Example) -> int | None:
    """FLOPs of a forward pass (one multiply-add counts once), or None where the model does not run."""
    counted = flops_by_op(module, example)
    return None if counted is None else sum(counted.values())


def flops_by_op(module: nn.Module, example: Example) -> dict[str, int] | None:
    """FLOPs of each kind of op (conv, linear, batch_norm, ...), largest first; None where the model does not run.

    Attention, recurrent and bilinear layers, which fvcore leaves out, and every einsum of two operands are counted by
    handlers of our own.
    """
    counted = _by_fvcore(module, example)
    if counted is None:
        try:
            counted = flops_on(record(module, example))
        except ForwardError:
            return None
    return {name: int(n) for name, n in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])) if n}


def _by_fvcore(module: nn.Module, example: Example) -> dict[str, int] | None:
    """None where TorchScript cannot trace the model: it holds scripted parts, or calls layers with other weights."""
    with _quiet(), _in_eval(module):
        from fvcore.nn import FlopCountAnalysis

        try:
            analysis = FlopCountAnalysis(_Tensors(module), tuple(example.args))
            for name, handler in HANDLERS.items():
                analysis.set_op_handle(name, handler)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            return dict(analysis.by_operator())
        except Exception:  # whatever the tracer of TorchScript raises
            return None


class _Tensors(nn.Module):
    """Gives the tensors among a model's outputs: TorchScript takes neither dataclasses nor None."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple(output_tensors(self.model(*inputs)))


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """q (..., L, E), k (..., S, E), v (..., S, V): two matrix products."""
    del outputs
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    return int(math.prod(query) * key[-2] + math.prod(query[:-1]) * value[-2] * value[-1])


def _baddbmm(inputs: list[Any], outputs: list[Any]) -> int:
    del outputs
    first, second = (tensor.type().sizes() for tensor in inputs[1:3])
    return int(math.prod(first) * second[-1])


def _grouped_matmul(inputs: list[Any], outputs: list[Any]) -> int:
    """Every row meets the matrix of its expert."""
    del outputs
    rows, matrices = (tensor.type().sizes() for tensor in inputs[:2])
    return int(math.prod(rows) * matrices[-1])


def _bilinear(inputs: list[Any], outputs: list[Any]) -> int:
    """Every weight meets every pair of inputs once."""
    del outputs
    first, _, weight = (tensor.type().sizes() for tensor in inputs[:3])
    return int(math.prod(first[:-1]) * math.prod(weight))


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """The product of all extents; fvcore knows some equations only, and keeps those of more operands."""
    del outputs
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [node.type().sizes() for node in inputs[1].node().inputs()]
    operands = equation.split("->")[0].split(",")
    if len(shapes) != 2 or "..." in equation:
        raise NotImplementedError(f"einsum {equation}")
    extents = dict(zip("".join(operands), [n for shape in shapes for n in shape], strict=True))
    return int(math.prod(extents.values()))


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Every matrix meets every step of every sequence once; the first argument is (steps, sequences, width)."""
    del outputs
    steps = math.prod(inputs[0].type().sizes()[:-1])
    parameters = next(v for v in inputs[::-1] if v.node().kind() == "prim::ListConstruct")
    shapes = [node.type().sizes() for node in parameters.node().inputs()]
    return int(steps * sum(math.prod(shape) for shape in shapes if len(shape) == 2))


def _deformed_convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Every weight meets every place of the result once."""
    batch, _, *places = outputs[0].type().sizes()
    return int(batch * math.prod(places) * math.prod(inputs[1].type().sizes()))


HANDLERS = {
    "torchvision::deform_conv2d": _deformed_convolution,
    "aten::scaled_dot_product_attention": _attention,
    "aten::baddbmm": _baddbmm,
    "aten::_grouped_mm": _grouped_matmul,
    "aten::bilinear": _bilinear,
    "aten::einsum": _einsum,
    **{f"aten::{name}": _recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("fvcore")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    """In training mode fvcore's trace would move batch-norm statistics; the fused attention path hides FLOPs."""
    training = {part: part.training for part in module.modules()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for part, mode in training.items():
            part.training = mode
