"""Write the container: dense safetensors with one sorted metadata block, atomically, the same bytes every time."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from prunecli.checkpoint.read import METADATA_KEY
from prunecli.errors import OutputError

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip

# Suffixes by which other programs would expect another format.
FOREIGN = frozenset({".onnx", ".pt2", ".ts", ".pth", ".pt", ".th", ".bin", ".ckpt"})


@contextlib.contextmanager
def atomic(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[IO[bytes]]:
    """A file that appears under `path` whole, or not at all: temporary file, fsync, check, rename.

    Args:
        path: the final name.
        check: called with the finished temporary file; what it raises keeps the file from appearing.

    Raises:
        OutputError: the folder is missing or cannot be written.
    """
    check_output(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if check is not None:
            check(Path(temporary))
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(path: Path, *inputs: Path) -> None:
    """Refuse an output that cannot be written or that would replace an input or a device.

    Raises:
        OutputError: the folder is missing, not writable, or the path is a folder, a device or an input.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", hint="name a file in it")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file, and would be replaced by one", hint="name a file with -o")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write {path}: permission denied")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"the output {path} is the input", hint="choose another name with -o")


def check_container(path: Path, *inputs: Path) -> None:
    """`check_output` for a container, which is a safetensors file whatever it is called.

    Raises:
        OutputError: the suffix is that of another format, too.
    """
    check_output(path, *inputs)
    if path.suffix in FOREIGN:
        hint = f"-o {path.with_suffix('.safetensors')}; prunecli export writes other formats"
        raise OutputError(f"{path.name}: what is written is safetensors, not {path.suffix}", hint=hint)


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of a safetensors file, header first; keys sorted, so equal input gives equal bytes.

    Raises:
        OutputError: a tensor has a dtype that the format cannot hold.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every tensor aligned
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise OutputError(f"{name} has dtype {tensor.dtype}, which safetensors cannot hold")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        flat = tensors[name].detach().cpu().reshape(-1)
        flat = flat if flat.stride() == (1,) else flat.clone(memory_format=torch.contiguous_format)  # one number alone
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    container: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write tensors, and our own facts under one metadata key. Shared tensors are stored once.

    `check` is that of `atomic`.
    """
    with atomic(path, check) as stream:
        for block in _blocks(tensors, container):
            stream.write(block)


def file_size(tensors: Mapping[str, Tensor], container: Mapping[str, Any] | None = None) -> int:
    """Bytes of the file that `write_tensors` would write."""
    unique, _ = split_aliases(tensors)
    content = sum(t.numel() * t.element_size() for t in unique.values())
    return content + len(next(_blocks(tensors, container)))


def _blocks(tensors: Mapping[str, Tensor], container: Mapping[str, Any] | None) -> Iterator[bytes]:
    unique, aliases = split_aliases(tensors)
    metadata = {"format": "pt"}
    if container is not None:
        full = {**container, "aliases": aliases}
        metadata[METADATA_KEY] = json.dumps(full, sort_keys=True, separators=(",", ":"))
    return serialize(unique, metadata)


def split_aliases(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without their repetitions, and {repeated name: first name}."""
    first: dict[tuple[Any, ...], str] = {}
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            unique[name] = tensor
    return unique, aliases
