"""Constant channels: abstract interpretation of the tape.

Each value on the tape gets a *field*: an array that broadcasts to the value's shape and holds the number at
each position, or NaN where it depends on the input. None stands for a value of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunecli.graph.rules.layout import LAYOUT
from prunecli.graph.rules.pointwise import ELEMENTWISE
from prunecli.graph.tape import Op, Ref, Tape, flatten

Field = Tensor | None
Fields = dict[int, Field]

# Elementwise for channels, but their values are random, written from elsewhere, or uninitialised.
_NO_VALUE = {"aten." + n for n in ("fill_", "zero_", "copy_", "bernoulli", "bernoulli_", "native_dropout", "empty_like",
                                    "rand_like", "randn_like", "rrelu_with_noise")}  # fmt: skip
_PRODUCTS = {"aten.mul", "aten.mul_"}


def propagate(tape: Tape, tensors: Mapping[str, Tensor]) -> Fields:
    """Fields of all values, from the actual parameters and buffers (float64)."""
    fields: Fields = {}
    for name, index in tape.params.items():
        tensor = tensors[name]
        fields[index] = tensor.detach().double() if tensor.is_floating_point() else None
    for index in tape.inputs:
        fields[index] = None
    for op in tape.ops:
        results = _evaluate(op, tape, fields)
        for index, field in zip(op.outputs, results, strict=True):
            fields[index] = field
        for index in op.clobbers:
            fields[index] = None
    return fields


def _evaluate(op: Op, tape: Tape, fields: Fields) -> list[Field]:
    if not op.outputs:
        return []
    nothing: list[Field] = [None] * len(op.outputs)
    refs = op.refs
    if (
        refs
        and all(fields.get(r.index) is None for r in refs if r.index not in tape.params.values())
        and not any(r.index in tape.params.values() for r in refs)
    ):
        return nothing
    if op.name in VALUES:
        return [VALUES[op.name](op, tape, fields), *nothing[1:]]
    if op.name in LAYOUT:
        return _layout(op, tape, fields)
    if op.name in _NO_VALUE:
        return nothing
    if refs and (op.name in ELEMENTWISE or op.kind.pointwise):
        return [_pointwise(op, tape, fields), *nothing[1:]]
    return nothing


def field_of(tape: Tape, fields: Fields, ref: Ref) -> Tensor:
    """The field of an argument; all NaN where nothing is known."""
    field = fields.get(ref.index)
    if field is None:
        return torch.full((1,) * len(tape.shapes[ref.index]), torch.nan, dtype=torch.float64)
    return field


def whole_field(tape: Tape, fields: Fields, ref: Ref) -> Tensor:
    """The field of an argument in the argument's full shape."""
    return field_of(tape, fields, ref).expand(tape.shapes[ref.index])


def squeeze(field: Tensor) -> Field:
    """Reduce every dim along which the field does not vary to extent 1; None when nothing is known."""
    if bool(field.isnan().all()):
        return None
    for dim in range(field.ndim):
        if field.shape[dim] > 1:
            first = field.narrow(dim, 0, 1)
            if bool(((field == first) | (field.isnan() & first.isnan())).all()):
                field = first
    return field


def _pointwise(op: Op, tape: Tape, fields: Fields) -> Field:
    """Run the op on the known numbers; a product with zero is zero whatever the other factor is."""
    refs = op.refs
    operands = torch.broadcast_tensors(*(field_of(tape, fields, r) for r in refs))
    unknown = torch.stack([o.isnan() for o in operands]).any(0)
    stand_ins = iter([torch.nan_to_num(o, nan=0.0).clone() for o in operands])
    args = [_substitute(a, stand_ins) for a in op.args]
    kwargs = {k: v for k, v in op.kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory")}
    try:
        result = op.func(*args, **kwargs)
    except (RuntimeError, TypeError):
        return None
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return None
    if op.name in _PRODUCTS and len(operands) == 2:
        unknown = unknown & (operands[0] != 0) & (operands[1] != 0)
        result = torch.nan_to_num(operands[0]) * torch.nan_to_num(operands[1])
    return squeeze(result.double().masked_fill(unknown, torch.nan))


def _substitute(argument: object, stand_ins: object) -> object:
    if isinstance(argument, Ref):
        return next(stand_ins)  # type: ignore[call-overload]
    if isinstance(argument, list | tuple):
        return type(argument)(_substitute(a, stand_ins) for a in argument)
    return argument


def _layout(op: Op, tape: Tape, fields: Fields) -> list[Field]:
    source = op.args[0]
    full = field_of(tape, fields, source).expand(tape.shapes[source.index])
    if op.name in ("aten.view", "aten._unsafe_view"):
        return [squeeze(full.reshape(op.args[1]))]
    results = op.func(full, *op.args[1:], **op.kwargs)
    return [squeeze(r) for r in flatten(results) if isinstance(r, Tensor)]


def _convolution(op: Op, tape: Tape, fields: Fields) -> Field:
    """An output channel is known when all it reads is known, and no padding mixes with a non-zero constant."""
    data, weight = field_of(tape, fields, op.args[0]), whole_field(tape, fields, op.args[1])
    transposed, groups = bool(op.args[6]), int(op.args[8])
    channels = tape.shapes[op.args[0].index][1]
    if bool(weight.isnan().any()) or any(n > 1 for n in data.shape[2:]) or data.shape[0] > 1:
        return None
    inputs = data.reshape(-1).expand(channels).reshape(groups, 1, -1)
    kernel = weight.reshape(*weight.shape[:2], -1)
    if transposed:  # (in, out / groups, taps) -> (out, in / groups, taps)
        kernel = (
            kernel.reshape(groups, -1, *kernel.shape[1:])
            .transpose(1, 2)
            .reshape(-1, channels // groups, kernel.shape[2])
        )
    kernel = kernel.reshape(groups, -1, *kernel.shape[1:])  # (groups, out, in, taps)
    uneven = transposed or any(p > 0 for p in op.args[4])
    unfit = (inputs.isnan() | (inputs != 0)) if uneven else inputs.isnan()
    unknown = ((kernel != 0).any(-1) & unfit).any(-1).reshape(-1)
    value = (kernel.sum(-1) * torch.nan_to_num(inputs)).sum(-1).reshape(-1)
    if isinstance(op.args[2], Ref):
        value = value + field_of(tape, fields, op.args[2]).reshape(-1)
    shape = [1] * len(tape.shapes[op.outputs[0]])
    shape[1] = -1
    return squeeze(value.masked_fill(unknown, torch.nan).reshape(shape))


def _matmul(op: Op, tape: Tape, fields: Fields) -> Field:
    data, weight = field_of(tape, fields, op.refs[-2]), whole_field(tape, fields, op.refs[-1])
    if bool(weight.isnan().any()) or data.ndim != 2 or weight.ndim != 2 or data.shape[0] > 1:
        return None
    inputs = data.expand(1, tape.shapes[op.refs[-2].index][1])
    unknown = (inputs.isnan().double() @ (weight != 0).double()) > 0
    value = torch.nan_to_num(inputs) @ weight
    if op.name == "aten.addmm":
        value = value + field_of(tape, fields, op.args[0])
    return squeeze(value.masked_fill(unknown, torch.nan))


def _batched_matmul(op: Op, tape: Tape, fields: Fields) -> Field:
    """Of two activations, (B, N, K) and (B, K, M): zero where a row or a column is, such as a value of attention."""
    rows = (field_of(tape, fields, op.args[0]) == 0).all(2, keepdim=True)
    columns = (field_of(tape, fields, op.args[1]) == 0).all(1, keepdim=True)
    return squeeze(torch.where(rows | columns, 0.0, torch.nan).double())


def _batch_norm(op: Op, tape: Tape, fields: Fields) -> Field:
    data = field_of(tape, fields, op.args[0])
    if op.args[5] or not isinstance(op.args[3], Ref):
        return None
    shape = [1] * data.ndim
    shape[1] = -1
    weight, bias, mean, var = (
        field_of(tape, fields, a).reshape(shape) if isinstance(a, Ref) else None for a in op.args[1:5]
    )
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + op.args[7])
    if weight is not None:
        data_scale = scale * weight
        data = torch.where(data_scale == 0, torch.zeros_like(data_scale * data), data)  # gamma 0 hides the input
        scale = data_scale
    value = (data - mean) * scale
    return squeeze(value if bias is None else value + bias)


def _group_norm(op: Op, tape: Tape, fields: Fields) -> Field:
    """A group that is constant in every channel, and channels that nothing of the input gets through to."""
    data = field_of(tape, fields, op.args[0])
    if any(size > 1 for size in data.shape[2:]) or data.shape[0] > 1:
        return None
    channels, groups = tape.shapes[op.args[0].index][1], int(op.args[6])
    rows = data.reshape(-1).expand(channels).reshape(groups, -1)
    centred = rows - rows.mean(1, keepdim=True)
    value = (centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + op.args[7])).reshape(-1)
    weight, bias = (field_of(tape, fields, a) if isinstance(a, Ref) else None for a in op.args[1:3])
    if weight is not None:
        value = torch.where(weight == 0, torch.zeros_like(value), value * weight)
    value = value if bias is None else value + bias
    return squeeze(value.reshape(1, -1, *[1] * (data.ndim - 2)))


def _weight_norm(op: Op, tape: Tape, fields: Fields) -> Field:
    direction, magnitude = (whole_field(tape, fields, ref) for ref in op.args[:2])
    if bool(direction.isnan().any() | magnitude.isnan().any()):
        return None
    return squeeze(torch._weight_norm(direction, magnitude, *op.args[2:]))


def _pool(op: Op, tape: Tape, fields: Fields) -> Field:
    data = field_of(tape, fields, op.args[0])
    return None if any(n > 1 for n in data.shape[2:]) else squeeze(data)


def _avg_pool(op: Op, tape: Tape, fields: Fields) -> Field:
    """Padding zeros count in the mean: there only a zero stays what it is."""
    data = _pool(op, tape, fields)
    padding = op.args[3] if len(op.args) > 3 else [0]
    counted = op.args[5] if len(op.args) > 5 else True
    if data is not None and counted and any(p > 0 for p in padding):
        return squeeze(data.masked_fill(data != 0, torch.nan))
    return data


def _mean(op: Op, tape: Tape, fields: Fields) -> Field:
    data = field_of(tape, fields, op.args[0])
    dims = op.args[1] if len(op.args) > 1 and op.args[1] is not None else range(data.ndim)
    if any(data.shape[d] > 1 for d in dims):
        return None
    return squeeze(op.func(data, *op.args[1:]))


def _cat(op: Op, tape: Tape, fields: Fields) -> Field:
    dim = op.args[1] if len(op.args) > 1 else 0
    parts = [field_of(tape, fields, r) for r in op.args[0]]
    sizes = [tape.shapes[r.index][dim] for r in op.args[0]]
    lengths = [max(p.shape[d] for p in parts) for d in range(parts[0].ndim)]
    full = []
    for part, size in zip(parts, sizes, strict=True):
        lengths[dim] = size
        full.append(part.expand(lengths))
    return squeeze(torch.cat(full, dim))


def _pad(op: Op, tape: Tape, fields: Fields) -> Field:
    """A padded dim holds the padding beside the rest; where they differ the position is known all the same."""
    source = op.args[0]
    field = field_of(tape, fields, source)
    shape = tape.shapes[source.index]
    pads = list(op.args[1])
    value = op.args[2] if len(op.args) > 2 else 0
    for number in range(len(pads) // 2):
        dim = len(shape) - 1 - number
        if pads[2 * number] or pads[2 * number + 1]:
            field = field.expand(*field.shape[:dim], shape[dim], *field.shape[dim + 1 :])
    return squeeze(torch.nn.functional.pad(field, pads, value=float(value)))


VALUES: dict[str, Callable[[Op, Tape, Fields], Field]] = {
    "aten.convolution": _convolution,
    "aten.addmm": _matmul,
    "aten.mm": _matmul,
    "aten.bmm": _batched_matmul,
    "aten.native_batch_norm": _batch_norm,
    "aten.native_group_norm": _group_norm,
    "aten._weight_norm_interface": _weight_norm,
    "aten.mean": _mean,
    "aten.cat": _cat,
    "aten.constant_pad_nd": _pad,
    "aten.avg_pool2d": _avg_pool,
    "aten._prelu_kernel": _pointwise,
    **dict.fromkeys(
        (
            "aten.max_pool2d_with_indices", "aten.max_pool2d", "aten.max_pool3d_with_indices",
            "aten._adaptive_avg_pool2d", "aten._adaptive_avg_pool3d", "aten.adaptive_max_pool2d",
            "aten.upsample_nearest2d", "aten.upsample_bilinear2d", "aten.reflection_pad2d", "aten.replication_pad2d",
        ),
        _pool,
    ),
}  # fmt: skip
