"""Which images each step sees: each once an epoch, whatever the number of processes and of parts of the training."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from prunecli.ranks import world
from prunecli.recipe.schema import Train
from prunecli.train.order import Order


@pytest.mark.parametrize(("count", "processes", "accumulate"), [(100, 1, 1), (101, 2, 1), (97, 3, 2), (50, 4, 1)])
def test_every_image_is_seen_once_and_weights_add_up(
    count: int, processes: int, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert world() == processes
    settings = Train(epochs=1, batch_size=8, accumulate=accumulate, validation=0.0)
    seen: list[int] = []
    weights: dict[int, float] = {}
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        order = Order(count, settings, seed=3)
        for step, parts in enumerate(order.epoch(0)):
            assert len(parts) == accumulate
            for part in parts:
                seen += part.indices.tolist()
                weights[step] = weights.get(step, 0.0) + part.weight / processes
    assert len(set(seen)) == len(seen) >= count - processes * accumulate
    assert all(weight == pytest.approx(1) for weight in weights.values())


def images(order: Order, after: int = 0) -> list[tuple[int, list[int]]]:
    """Epoch and images of each step that is left."""
    left = [(epoch, step) for epoch, steps in order.after(after) for step in steps]
    return [(epoch, torch.cat([part.indices for part in parts]).tolist()) for epoch, parts in left]


@given(
    st.integers(1, 200),
    st.integers(1, 40),
    st.floats(0.05, 3),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.2]),
    st.data(),
)
def test_parts_of_a_training_see_what_the_whole_sees(
    count: int, size: int, epochs: float, parts: int, validation: float, data: st.DataObject
) -> None:
    whole = Order(count, Train(epochs=epochs, batch_size=size, validation=validation), seed=1)
    assume(whole.steps >= 2 * parts)  # each takes a step at least
    every = Train(epochs=epochs / parts, batch_size=size, validation=validation)
    found = [images(Order(count, every, 1, part * epochs / parts)) for part in range(parts)]
    seen = images(whole)
    assert [*itertools.chain(*found)] == seen
    assert len(seen) == whole.steps == pytest.approx(epochs * whole.per_epoch, abs=0.5001)
    assert whole.epochs == seen[-1][0] + 1
    assert not set(whole.held_out.tolist()) & {image for _, step in seen for image in step}
    step = data.draw(st.integers(0, whole.steps))
    assert images(whole, step) == seen[step:]


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (1e-9, 1), (0.25, 4), (1, 15), (1.5, 23)])
def test_epochs_may_be_a_fraction(epochs: float, steps: int) -> None:
    order = Order(1437, Train(epochs=epochs, batch_size=96, validation=0.0), seed=0)
    assert order.steps == len(images(order)) == steps


@pytest.mark.parametrize("parts", range(1, 11))
@pytest.mark.parametrize("epochs", [0.05, 0.15, 1 / 7, 1, 2.35])
def test_rounding_errors_lose_no_step(epochs: float, parts: int) -> None:
    for count in range(150, 400, 5):
        whole = Order(count, Train(epochs=epochs, batch_size=1, validation=0.0), seed=0)
        every = Train(epochs=epochs / parts, batch_size=1, validation=0.0)
        if whole.steps >= 2 * parts:
            assert sum(Order(count, every, 0, n * epochs / parts).steps for n in range(parts)) == whole.steps


@pytest.mark.parametrize("epochs", [-0.5, float("inf"), float("nan")])
def test_other_epochs_are_refused(epochs: float) -> None:
    with pytest.raises(ValueError, match="epochs"):
        Train(epochs=epochs)
