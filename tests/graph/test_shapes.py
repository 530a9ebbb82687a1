"""Shortcuts say what torch says, and refuse what torch refuses."""

from __future__ import annotations

import pytest
import torch

from prunecli.graph.shapes import SHORTCUTS, shortcut

aten = torch.ops.aten


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


IMAGE = meta(2, 6, 4, 5)
VECTOR = meta(6)
KERNEL = meta(8, 3, 3, 2)
PLACES = ([2], [1, 0], [1, 2], False, [0, 0], 2)
CALLS = {
    "aten.convolution": (IMAGE, KERNEL, meta(8), *PLACES),
    "aten.native_batch_norm": (IMAGE, VECTOR, VECTOR, VECTOR, VECTOR, False, 0.1, 1e-5),
    "aten.native_layer_norm": (meta(2, 3, 6), [6], VECTOR, None, 1e-5),
    "aten.addmm": (VECTOR, meta(4, 3), meta(3, 6)),
    "aten.mm": (meta(4, 3), meta(3, 6)),
    "aten.add": (IMAGE, meta(2, 6, 4, 5)),
    "aten.mul": (IMAGE, meta(2, 6, 1, 1)),
    "aten.mean": (IMAGE, [-1, 2], True),
    "aten._softmax": (IMAGE, 1, False),
    "aten._safe_softmax": (IMAGE, 1),
}


@pytest.mark.parametrize("name", SHORTCUTS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_same_as_torch(name: str, layout: torch.memory_format) -> None:
    def arrange(value: object) -> object:
        is_image = isinstance(value, torch.Tensor) and value.ndim == 4
        return value.contiguous(memory_format=layout) if is_image else value

    args = tuple(arrange(a) for a in CALLS.get(name, (IMAGE,)))
    expected, found = getattr(aten, name.removeprefix("aten."))(*args), shortcut(name, args)
    if found is None and layout != torch.contiguous_format:
        return  # left to torch
    pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    for number, (a, b) in enumerate(pairs):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert number or a.stride() == b.stride()


def test_batch_norm_in_training() -> None:
    args = (*CALLS["aten.native_batch_norm"][:5], True, 0.1, 1e-5)
    found = shortcut("aten.native_batch_norm", args)
    assert isinstance(found, tuple)
    assert [t.shape for t in found] == [t.shape for t in aten.native_batch_norm(*args)]


REFUSED = {
    "aten.convolution": (IMAGE, meta(8, 2, 3, 2), None, *PLACES),
    "aten.native_batch_norm": (IMAGE, VECTOR, VECTOR, meta(5), VECTOR, False, 0.1, 1e-5),
    "aten.native_layer_norm": (meta(2, 3, 6), [6], meta(5), None, 1e-5),
    "aten.addmm": (VECTOR, meta(4, 3), meta(2, 6)),
    "aten.mm": (meta(4, 3), meta(2, 6)),
}


@pytest.mark.parametrize("name", ["aten.convolution", "aten.native_batch_norm", "aten.native_layer_norm", "aten.addmm",
                                  "aten.mm"])  # fmt: skip
def test_dtypes_that_torch_does_not_mix_are_refused(name: str) -> None:
    """Torch says so when it computes, not on meta."""
    first, *others = (v.double() if n == 0 else v for n, v in enumerate(CALLS[name]))
    with pytest.raises(RuntimeError, match="different dtypes"):
        shortcut(name, (first, *others))


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError):
        shortcut(name, REFUSED[name])
    with pytest.raises(RuntimeError):
        getattr(aten, name.removeprefix("aten."))(*REFUSED[name])


@pytest.mark.parametrize("shapes", [((2, 1, 4), (1, 6, 1)), ((1, 1, 1), (2, 0, 3)), ((2, 6, 1), (2, 6, 4))])
def test_broadcasting(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (meta(*shape) for shape in shapes)
    found, expected = shortcut("aten.mul", (a, b)), a * b
    assert isinstance(found, torch.Tensor)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())


@pytest.mark.parametrize("args", [([1],), ([0, 2], False), ([-2, -1], True)])
def test_means(args: tuple[object, ...]) -> None:
    found, expected = shortcut("aten.mean", (IMAGE, *args)), aten.mean(IMAGE, *args)
    assert isinstance(found, torch.Tensor)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())


def test_everything_else_is_torchs_business() -> None:
    assert shortcut("aten.add", (IMAGE, meta(6, 1, 1))) is None
    assert shortcut("aten.relu", (torch.zeros(3),)) is None
    assert shortcut("aten.sort", (IMAGE,)) is None
    assert shortcut("aten.mul", (IMAGE, meta(2, 5, 1, 1))) is None
    assert shortcut("aten.mean", (IMAGE, [1, -3])) is None
