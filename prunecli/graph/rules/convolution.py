"""Convolutions: plain, depthwise, grouped and transposed."""

from __future__ import annotations

import numpy as np

from prunecli.graph.labels import Book, Label, Labels, Read, along
from prunecli.graph.rules.call import NOT_A_CHANNEL, Call, rule, unknown
from prunecli.graph.rules.pattern import pattern
from prunecli.graph.rules.repetition import shares
from prunecli.graph.tape import Ref

_POINTWISE = {3: ("p", "1"), 4: ("p q", "1 1"), 5: ("p q r", "1 1 1")}  # by rank: the pixels, and those of the kernel


@rule("aten::convolution")
def convolution(call: Call, book: Book) -> list[Labels]:
    """``n i *, o i *, o -> n o *``; transposed: the weight is ``i o *``; depthwise channels pass through.

    Channels may lie where pixels do (a kernel of one that mixes tokens): ``n i p, o i 1, o -> n o p`` hands them on.
    """
    transposed, groups = bool(call.op.args[6]), int(call.op.args[8])
    source, weight = call.ref(0), call.ref(1)
    if source is None or weight is None:
        return unknown(call, book)
    per_group = call.shape(weight)[1]
    if groups == 1:
        pixels, taps = _POINTWISE[len(call.shape(source))] if _is_pointwise(call, source) else ("*", "*")
        filters = f"i o {taps}" if transposed else f"o i {taps}"
        return pattern(call, book, (0, 1, 2), f"n i {pixels}, {filters}, o -> n o {pixels}")
    if per_group == 1 or call.shape(weight)[0] == groups:
        return _depthwise(call, book, transposed)
    return _transposed_groups(call, book, groups) if transposed else _grouped(call, book, groups)


@rule("torchvision::deform_conv2d")
def deformed_convolution(call: Call, book: Book) -> list[Labels]:
    """A convolution that reads at other places; how many offsets and masks there are depends on the kernel."""
    if int(call.named("groups", 1)) > 1 or int(call.named("offset_groups", 1)) > 1:
        return unknown(call, book)
    return pattern(call, book, (0, 1, 2, 3, 4), "n i *, o i *, *, *, o -> n o *")


def _is_pointwise(call: Call, source: Ref) -> bool:
    """Whether every pixel is computed from the one at its place alone: without padding, more would be left out."""
    padding = call.op.args[4]
    return not any(padding) and call.out_shapes[0][2:] == call.shape(source)[2:]


def _channel_label(call: Call, book: Book, position: int, axis: int) -> Label | None:
    """The label along `axis` of an argument, depending on the axis alone; all others are frozen."""
    chosen = None
    for label in call.labels(position):
        if label.axis == axis:
            chosen = book.align(label)
        else:
            book.freeze((label,), NOT_A_CHANNEL)
    return chosen


def _depthwise(call: Call, book: Book, transposed: bool) -> list[Labels]:
    """A filter bank for each input channel: removing the channel removes its filters."""
    groups = int(call.op.args[8])
    data, bias = _channel_label(call, book, 0, 1), _channel_label(call, book, 2, 0)
    source, weight = call.ref(0), call.ref(1)
    assert source is not None
    assert weight is not None
    if data is not None:
        shares(call, book, weight, data, 0)  # one filter for all channels: ``blur.expand(channels, 1, 3, 3)``
    rows = _channel_label(call, book, 1, 0)
    out_channels = call.out_shapes[0][1]
    labels = tuple(label for label in (data, rows, bias) if label is not None)
    if call.shape(source)[1] != groups or data is None or rows is None or (transposed and out_channels != groups):
        book.freeze(labels, f"uneven groups at {call.op.where}")
        return [()]
    repeated = np.repeat(data.ids, rows.ids.size // groups)
    book.tie(repeated, rows.ids.reshape(-1))
    if bias is not None:
        book.tie(repeated, bias.ids.reshape(-1))
    return [(along(rows.ids, 1, len(call.out_shapes[0])),)]


def _filters(call: Call, book: Book) -> tuple[Label | None, Label | None]:
    """Labels of the first two dims of the weight; those of the kernel are frozen."""
    by_axis = {label.axis: label for label in call.labels(1)}
    for axis, label in by_axis.items():
        if axis > 1:
            book.freeze((label,), NOT_A_CHANNEL)
    return by_axis.get(0), by_axis.get(1)


def _grouped(call: Call, book: Book, groups: int) -> list[Labels]:
    """Every group keeps equally many channels; a weight column serves the same place in every group."""
    data, bias = _channel_label(call, book, 0, 1), _channel_label(call, book, 2, 0)
    rows, columns = _filters(call, book)
    if rows is None:
        known = tuple(label for label in (data, columns, bias) if label is not None)
        book.freeze(known, f"fixed filters at {call.op.where}")
        return [()]
    if data is None or columns is None:
        book.freeze(tuple(label for label in (data, columns) if label), f"fixed input channels at {call.op.where}")
    else:
        book.tie(data.ids.reshape(groups, -1), columns.ids.reshape(1, -1))
        source, weight = call.ref(0), call.ref(1)
        assert source is not None
        assert weight is not None
        book.reads.append(Read(call.op.index, source.index, data, weight.index, columns, groups))
    book.filter_groups(rows.ids.reshape(groups, -1))
    if bias is not None:
        book.tie(rows.ids.reshape(-1), bias.ids.reshape(-1))
    return [(along(rows.ids, 1, len(call.out_shapes[0])),)]


def _transposed_groups(call: Call, book: Book, groups: int) -> list[Labels]:
    """Weight (in, out / groups): a column gives the same place of every group, rows are the input channels."""
    data, bias = _channel_label(call, book, 0, 1), _channel_label(call, book, 2, 0)
    rows, columns = _filters(call, book)
    if data is None or rows is None or columns is None:
        book.freeze(tuple(label for label in (data, rows, columns, bias) if label), f"uneven groups at {call.op.where}")
        return [()]
    book.tie(data.ids.reshape(-1), rows.ids.reshape(-1))
    book.filter_groups(rows.ids.reshape(groups, -1))
    source, weight = call.ref(0), call.ref(1)
    assert source is not None
    assert weight is not None
    book.reads.append(Read(call.op.index, source.index, data, weight.index, rows, groups))
    given = np.tile(columns.ids.reshape(-1), groups)
    if bias is not None:
        book.tie(given, bias.ids.reshape(-1))
    return [(along(given, 1, len(call.out_shapes[0])),)]
