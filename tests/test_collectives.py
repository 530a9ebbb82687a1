"""What processes tell each other; what they do together for real is in train/test_parallel.py."""

from __future__ import annotations

import pytest
import torch

from prunecli import collectives
from prunecli.collectives import accompanied, first_alone, of_all, of_first, total
from prunecli.errors import InputError, OutcomeError

LOST = "[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:19369: Connection reset by peer"


def test_one_process_has_it_all() -> None:
    rows = torch.randn(3, 2)
    assert of_all(rows) is rows
    assert of_first(lambda: 3) == first_alone(lambda: 3) == total(3) == 3


@pytest.mark.parametrize(
    ("error", "cause", "raised"),
    [
        (RuntimeError(LOST), None, OutcomeError),
        (InputError("the model cannot be trained"), RuntimeError(LOST), OutcomeError),
        (InputError("the model cannot be trained"), RuntimeError("sizes"), InputError),
        (RuntimeError("sizes"), None, RuntimeError),
    ],
)
def test_a_lost_process_is_named(
    error: Exception, cause: Exception | None, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with accompanied():
            raise error from cause

    with pytest.raises(type(error)):
        fail()
    monkeypatch.setattr(collectives, "world", lambda: 2)
    with pytest.raises(raised, match="another process is gone" if raised is OutcomeError else str(error)):
        fail()
