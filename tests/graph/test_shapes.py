"""Shortcuts say what torch says, and refuse what torch refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    "aten.grid_sampler_2d": (IMAGE, meta(2, 7, 3, 2), 0, 0, False),
    "aten.native_batch_norm": (IMAGE, VECTOR, VECTOR, VECTOR, VECTOR, False, 0.1, 1e-5),
    "aten.native_layer_norm": (meta(2, 3, 6), [6], VECTOR, None, 1e-5),
    "aten.addmm": (VECTOR, meta(4, 3), meta(3, 6)),
    "aten.mm": (meta(4, 3), meta(3, 6)),
    "aten.add": (IMAGE, meta(2, 6, 4, 5)),
    "aten.sub": (meta(6, 1, 1), IMAGE),
    "aten.mul": (IMAGE, meta(2, 6, 1, 1)),
    "aten.div": (IMAGE, 3),
    "aten.add_": (IMAGE, IMAGE),
    "aten.sub_": (IMAGE, meta(6, 1, 1)),
    "aten.mul_": (IMAGE, 0.5),
    "aten.div_": (IMAGE, meta(2, 1, 1, 5)),
    "aten.bmm": (meta(2, 4, 3), meta(2, 3, 6)),
    "aten.cat": ([IMAGE, meta(2, 3, 4, 5), IMAGE], -3),
    "aten._unsafe_view": (IMAGE, [2, 3, 2, 20]),
    "aten.max_pool2d_with_indices": (IMAGE, [3, 2], [2, 2], [1, 0]),
    "aten.avg_pool2d": (IMAGE, [2, 2]),
    "aten.mean": (IMAGE, [-1, 2], True),
    "aten._softmax": (IMAGE, 1, False),
    "aten._safe_softmax": (IMAGE, 1),
}


@pytest.mark.parametrize("name", sorted(SHORTCUTS.keys() - {"aten.empty"}))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_same_as_torch(name: str, layout: torch.memory_format) -> None:
    def arrange(value: object) -> object:
        is_image = isinstance(value, torch.Tensor) and value.ndim == 4
        return value.contiguous(memory_format=layout) if is_image else value

    args = tuple(arrange(a) for a in CALLS.get(name, (IMAGE,)))
    expected, found = getattr(aten, name.removeprefix("aten."))(*args), shortcut(name, args, {})
    if found is None and layout != torch.contiguous_format:
        return  # left to torch
    pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    for number, (a, b) in enumerate(pairs):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert number or a.stride() == b.stride()


def test_batch_norm_in_training() -> None:
    args = (*CALLS["aten.native_batch_norm"][:5], True, 0.1, 1e-5)
    found = shortcut("aten.native_batch_norm", args, {})
    assert isinstance(found, tuple)
    assert [t.shape for t in found] == [t.shape for t in aten.native_batch_norm(*args)]


REFUSED = {
    "aten.convolution": (IMAGE, meta(8, 2, 3, 2), None, *PLACES),
    "aten.grid_sampler_2d": (IMAGE, meta(3, 7, 3, 2), 0, 0, False),
    "aten.native_batch_norm": (IMAGE, VECTOR, VECTOR, meta(5), VECTOR, False, 0.1, 1e-5),
    "aten.native_layer_norm": (meta(2, 3, 6), [6], meta(5), None, 1e-5),
    "aten.addmm": (VECTOR, meta(4, 3), meta(2, 6)),
    "aten.mm": (meta(4, 3), meta(2, 6)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_dtypes_that_torch_does_not_mix_are_refused(name: str) -> None:
    """Torch says so when it computes, not on meta."""
    first, *others = (v.double() if n == 0 else v for n, v in enumerate(CALLS[name]))
    with pytest.raises(RuntimeError, match="different dtypes"):
        shortcut(name, (first, *others), {})


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError):
        shortcut(name, REFUSED[name], {})
    with pytest.raises(RuntimeError):
        getattr(aten, name.removeprefix("aten."))(*REFUSED[name])


@pytest.mark.parametrize("shapes", [((2, 1, 4), (1, 6, 1)), ((1, 1, 1), (2, 0, 3)), ((2, 6, 1), (2, 6, 4))])
def test_broadcasting(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (meta(*shape) for shape in shapes)
    found, expected = shortcut("aten.mul", (a, b), {}), a * b
    assert isinstance(found, torch.Tensor)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())


def laid_out(tensor: torch.Tensor) -> tuple[object, ...]:
    """Its shape, and the strides that say something."""
    steps = [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return tensor.shape, steps if tensor.numel() else []


def strided(draw: st.DrawFn, shape: list[int]) -> torch.Tensor:
    """A tensor of that shape whose dims lie in memory in any order, perhaps with places between them."""
    order = draw(st.permutations(range(len(shape))))
    gap = draw(st.sampled_from([1, 1, 2]))
    whole = meta(*(shape[dim] for dim in order[:-1]), shape[order[-1]] * gap)
    return whole[..., ::gap].permute([order.index(dim) for dim in range(len(shape))])


@st.composite
def operands(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors that are broadcast to one shape."""
    shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    first = strided(draw, [draw(st.sampled_from([size, size, 1])) for size in shape])
    second = strided(draw, [draw(st.sampled_from([size, size, 1])) for size in shape[draw(st.integers(0, 1)) :]] or [1])
    return draw(st.permutations([first, second]))


@given(operands())
def test_the_order_in_memory(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    found, expected = shortcut("aten.mul", tuple(pair), {}), pair[0] * pair[1]
    assert isinstance(found, torch.Tensor)
    assert laid_out(found) == laid_out(expected)


CONTIGUOUS = {"memory_format": torch.contiguous_format}


@pytest.mark.parametrize(("name", "kwargs"), [("silu", {}), ("clone", {}), ("clone", CONTIGUOUS)])
@given(data=st.data())
def test_the_order_in_memory_of_one(name: str, kwargs: dict[str, torch.memory_format], data: st.DataObject) -> None:
    """Linear layers take contiguous tensors another way than others."""
    tensor = data.draw(operands())[0]
    found, expected = shortcut(f"aten.{name}", (tensor,), kwargs), getattr(aten, name)(tensor, **kwargs)
    if found is not None:  # places between the dims are torch's business
        assert isinstance(found, torch.Tensor)
        assert laid_out(found) == laid_out(expected)


def test_an_empty_tensor() -> None:
    found = shortcut("aten.empty", ([2, 3],), {"dtype": torch.int8, "device": torch.device("meta")})
    assert isinstance(found, torch.Tensor)
    assert (found.shape, found.dtype, found.is_meta) == ((2, 3), torch.int8, True)


@pytest.mark.parametrize("args", [([1],), ([0, 2], False), ([-2, -1], True)])
def test_means(args: tuple[object, ...]) -> None:
    found, expected = shortcut("aten.mean", (IMAGE, *args), {}), aten.mean(IMAGE, *args)
    assert isinstance(found, torch.Tensor)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())


def test_everything_else_is_torchs_business() -> None:
    assert shortcut("aten.add", (IMAGE, IMAGE.double()), {}) is None
    assert shortcut("aten.add", (IMAGE, IMAGE), {"alpha": 2}) is None
    assert shortcut("aten.add", (IMAGE, torch.ones(2, 6, 4, 5)), {}) is None
    assert shortcut("aten.relu", (torch.zeros(3),), {}) is None
    assert shortcut("aten.sort", (IMAGE,), {}) is None
    assert shortcut("aten.mul", (IMAGE, meta(2, 5, 1, 1)), {}) is None
    assert shortcut("aten.mul_", (meta(1, 6, 4, 5), IMAGE), {}) is None
    assert shortcut("aten.mean", (IMAGE, [1, -3]), {}) is None
    assert shortcut("aten.cat", ([IMAGE, meta(2, 6, 4, 4)], 1), {}) is None
    assert shortcut("aten._unsafe_view", (IMAGE, [7, -1]), {}) is None
    assert shortcut("aten.empty", ([2],), {"device": torch.device("cpu")}) is None
