"""Files appear whole or not at all, with the same bytes every time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunecli.checkpoint.read import read
from prunecli.checkpoint.write import atomic, check_output, write_tensors
from prunecli.errors import OutputError


def test_any_safetensors_reader_sees_the_tensors(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    kinds += (torch.complex64, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
    tensors = {f"t{i}": torch.arange(i + 3).to(kind) for i, kind in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "strided": torch.arange(6.0).reshape(2, 3).T}
    write_tensors(tmp_path / "f.safetensors", tensors, {"format_version": 1})
    found = load_file(tmp_path / "f.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[n].dtype == t.dtype and torch.equal(_numbers(found[n]), _numbers(t)) for n, t in tensors.items())


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Eight bits are compared by nothing in torch."""
    return tensor.float() if tensor.dtype.is_floating_point and tensor.element_size() == 1 else tensor


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2)}
    write_tensors(tmp_path / "1", tensors, {"format_version": 1, "x": {"b": 1, "a": 2}})
    write_tensors(tmp_path / "2", dict(reversed(tensors.items())), {"x": {"a": 2, "b": 1}, "format_version": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_slice_is_saved_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", {"a": torch.zeros(1000, 100)[:10]})
    assert (tmp_path / "f").stat().st_size < 5000


def test_one_number_with_a_stride(tmp_path: Path) -> None:
    """Torch calls it contiguous."""
    odd = torch.arange(6.0).reshape(2, 3)[1:, ::3]
    assert odd.is_contiguous()
    assert odd.reshape(-1).stride() != (1,)
    write_tensors(tmp_path / "f", {"a": odd, "b": torch.arange(4.0)[::2], "c": torch.tensor(2.0)})
    found = load_file(tmp_path / "f")
    assert (found["a"].tolist(), found["b"].tolist(), found["c"].item()) == ([[3.0]], [0.0, 2.0], 2.0)


def test_shared_tensors_are_stored_once_and_shared_again(tmp_path: Path) -> None:
    shared = torch.randn(50, 50)
    write_tensors(tmp_path / "f", {"a": shared, "b": shared, "c": shared[:25]}, {"format_version": 1})
    found = read(tmp_path / "f").state
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert torch.equal(found["c"], shared[:25])
    assert (tmp_path / "f").stat().st_size < 4 * 2500 + 4 * 1250 + 1000


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic(path) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_failed_check_keeps_the_file_from_appearing(tmp_path: Path) -> None:
    def refuse(temporary: Path) -> None:
        assert temporary.read_bytes() == b"new"
        raise ValueError

    with pytest.raises(ValueError), atomic(tmp_path / "f", refuse) as stream:  # noqa: PT011
        stream.write(b"new")
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys, torch
from pathlib import Path
from prunecli.checkpoint.write import write_tensors
path = Path(sys.argv[1])
print("ready", flush=True)
for number in range(10_000):
    write_tensors(path, {"a": torch.full((200_000,), float(number)), "b": torch.full((200_000,), float(number))})
"""


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    for delay in (0.01, 0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = load_file(path)
        assert bool((found["a"] == found["b"]).all())
        assert len(found["a"].unique()) == 1


def test_the_output_is_never_an_input(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OutputError, match="is the input"):
        check_output(tmp_path / "link", path)
