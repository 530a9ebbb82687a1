"""Read checkpoints of every kind. A file is recognised by its bytes, never by its name, and executes nothing.

Formats that are code (pickled modules, TorchScript, ``.pt2``) are refused unless the caller trusts the file.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import check_sparse_tensor_invariants

from prunecli.checkpoint.folder import candidates, configuration, is_distributed, weight_files
from prunecli.checkpoint.names import State, find_weights, plain_names, spellings, telling
from prunecli.checkpoint.values import is_left_out, left_out
from prunecli.errors import CheckpointError, UnsafeFileError, summary
from prunecli.user_code import importing_from

METADATA_KEY = "prunecli"
_TRUST = "if you trust where it comes from, allow it with --trust; safer: save the state dict and use that"
_INTERRUPTED = "was the download, the copy or the save interrupted?"
_KNOWN = "known: torch.save files, safetensors, TorchScript, .pt2, folders of Hugging Face and torch.distributed"
_NO_CHECKPOINTS = {  # how files begin that lie where a checkpoint should, and what to do
    b"{": "an index? give the folder that it lies in",
    b"version https://": "a pointer of Git LFS: git lfs pull fetches the file itself",
    b"<": "a web page: was the download refused?",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\x89HDF": "HDF5, as Keras writes it: save the weights of a PyTorch model instead",
    b"GGUF": "GGUF holds weights that are packed for llama.cpp: give the checkpoint it was made from",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: the file.
        format: its kind, for people.
        state: tensors by name.
        module: the module itself, where the file held one.
        container: our own metadata, where we wrote the file.
        notes: choices made while reading.
        written, renamed: the tensors as the file names them, and what was done to the names.
    """

    path: Path
    format: str
    state: State
    module: nn.Module | None = None
    container: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    written: State = field(default_factory=dict)
    renamed: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """Everything the user should know of how it was read."""
        return [*self.notes, *self.renamed]

    def spelled(self, names: Collection[str]) -> Checkpoint:
        """The same with that way to read the file's names which comes nearest to those of a module."""
        wanted = set(filter(telling, names))
        ways = (replace(self, state=state, renamed=notes) for state, notes in spellings(self.written))
        return min((self, *ways), key=lambda way: len(wanted ^ set(filter(telling, way.state))))


def read(path: str | Path, *, key: str | None = None, trust: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: a file or a folder.
        key: the entry that holds the weights, where a nested file has several.
        trust: allow formats whose reading executes code.

    Raises:
        CheckpointError: the file is missing, damaged or of no known kind.
        UnsafeFileError: reading it would execute code.
    """
    path = Path(path)
    if path.is_dir() and not is_distributed(path):
        return _read_folder(path, key, trust)
    if not path.is_dir() and not path.is_file():
        near = [p.name for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
        raise CheckpointError(f"no such file: {path}", hint=_nearest(path.name, near))
    kind = recognise(path)
    if kind.code and not trust:
        raise UnsafeFileError(f"{path} is {kind.title}: reading it executes code", hint=_TRUST)
    try:
        payload, container = kind.load(path, trust)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged or not what it seems ({kind.title}): {summary(error)}", hint=_INTERRUPTED
        ) from error
    entry, written, notes = find_weights(payload, key)
    module = entry if isinstance(entry, nn.Module) and not isinstance(entry, torch.jit.ScriptModule) else None
    state, renamed = (written, []) if container is not None or module is not None else plain_names(written)
    return Checkpoint(path, kind.title, state, module, container, None, notes, written, renamed)


def _nearest(name: str, near: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, near, 3)
    return f"did you mean {', '.join(close)}?" if close else "check the path"


def sha256(path: Path) -> str:
    """Hex digest of a file (of a folder's weights, names included)."""
    digest = hashlib.sha256()
    for file in weight_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


Loaded = tuple[Any, Mapping[str, Any] | None]


@dataclass(frozen=True)
class Kind:
    """One file format: its name, whether reading it executes code, and how to read it."""

    title: str
    code: bool
    load: Callable[[Path, bool], Loaded]


def recognise(path: Path) -> Kind:
    """The format of a file, by its content."""
    if path.is_dir():
        return KINDS["distributed"]
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty", hint=_INTERRUPTED)
    with path.open("rb") as stream:
        head = stream.read(16)
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if len(head) > 8 and head[8:9] == b"{":
        return KINDS["safetensors"]
    if head[:1] == b"\x80":
        return KINDS["pickle"]
    hint = next((hint for begin, hint in _NO_CHECKPOINTS.items() if head.startswith(begin)), _KNOWN)
    raise CheckpointError(f"{path} is no checkpoint (its first bytes are {head[:8]!r})", hint=hint)


def _zip_kind(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # damaged directories raise Unicode, struct and other errors too
        raise CheckpointError(f"{path} is a damaged zip archive: {error}", hint=_INTERRUPTED) from error
    tops = {name.partition("/")[2] for name in names} | set(names)
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in tops):
        return KINDS["pt2"]
    if any(name.startswith("code/") for name in tops) and "constants.pkl" in tops:
        return KINDS["torchscript"]
    if "data.pkl" in tops:
        return KINDS["zip"]
    raise CheckpointError(f"{path} is a zip archive without weights (it holds {', '.join(names[:4])} ...)")


def _load_pickle(path: Path, trust: bool) -> Loaded:
    """Only tensors, plain containers and values that are left out; never retried unsafely.

    What is trusted may need classes that can be imported from the working directory.
    """
    folders = [Path.cwd()] if trust else []
    try:
        with warnings.catch_warnings(), left_out(), importing_from(*folders), check_sparse_tensor_invariants():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=not trust), None
    except (ImportError, AttributeError) as error:
        if not trust:
            raise
        raise CheckpointError(
            f"{path} needs code that is not here: {error}", hint="go to the folder that its imports start from"
        ) from error
    except pickle.UnpicklingError as error:
        named = [name for name in _named_globals(path, error) if not is_left_out(name)]
        if not named and "Unsupported operand" in str(error):
            raise UnsafeFileError(
                f"{path} is a pickle that torch did not write; reading it may execute code",
                hint="where you trust it: torch.save({name: torch.as_tensor(value), ...}, FILE)",
            ) from error
        if not named:
            raise CheckpointError(f"{path} is damaged: {summary(error)}", hint=_INTERRUPTED) from error
        raise UnsafeFileError(
            f"{path} holds more than weights; reading it would import {', '.join(named)}", hint=_TRUST
        ) from error


def _named_globals(path: Path, error: Exception) -> list[str]:
    """What the pickle wants to import, read without importing it."""
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        words = str(error).split()
        return [words[words.index("GLOBAL") + 1]] if "GLOBAL" in words[:-1] else []


def _load_torchscript(path: Path, trust: bool) -> Loaded:
    del trust  # checked by the caller
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict()), None


def _load_pt2(path: Path, trust: bool) -> Loaded:
    del trust
    program = torch.export.load(path)
    return {**program.state_dict}, None


def _load_safetensors(path: Path, trust: bool) -> Loaded:
    del trust
    from safetensors import safe_open

    _check_header(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if METADATA_KEY not in metadata:
        return tensors, None
    try:
        container = json.loads(metadata[METADATA_KEY])
    except ValueError as error:
        raise CheckpointError(f"{path}: the prunecli metadata is not JSON: {error}") from error
    if not isinstance(container, dict) or container.get("format_version") != 1:
        raise CheckpointError(f"{path}: unknown container version", hint="update prunecli: pip install -U prunecli")
    for alias, name in container.get("aliases", {}).items():
        if name not in tensors:
            raise CheckpointError(f"{path}: {alias} shares a tensor {name!r} that is not in the file")
        tensors[alias] = tensors[name]
    return tensors, container


def _check_header(path: Path) -> None:
    """Refuse a header that claims more than the file has, before anything is allocated."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
    if length > path.stat().st_size - 8:
        raise CheckpointError(
            f"{path} is truncated: its header claims {length} bytes, the file is shorter", hint=_INTERRUPTED
        )


def _load_distributed(path: Path, trust: bool) -> Loaded:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = Path(folder) / "merged.pt"
        dcp_to_torch_save(path, merged)
        return _load_pickle(merged, trust)


def _read_folder(path: Path, key: str | None, trust: bool) -> Checkpoint:
    """One file or several, with the configuration of transformers or timm where it is there."""
    files, config = weight_files(path), configuration(path)
    if not files:
        found = candidates(path)
        raise CheckpointError(
            f"{path} is a folder without weights (*.safetensors or pytorch_model*.bin)",
            hint=f"give the file itself: {', '.join(found)}" if found else "give the file itself",
        )
    if config is None and len(files) == 1:
        return read(files[0], key=key, trust=trust)
    written: State = {}
    for file in files:
        try:
            written |= read(file).written
        except UnsafeFileError as error:
            raise UnsafeFileError(error.problem, hint="where you trust it, convert it to safetensors") from None
    state, renamed = plain_names(written)
    return Checkpoint(path, "folder of weights", state, None, None, config, [], written, renamed)


KINDS = {
    "safetensors": Kind("safetensors", False, _load_safetensors),
    "zip": Kind("torch zip", False, _load_pickle),
    "pickle": Kind("torch legacy", False, _load_pickle),
    "torchscript": Kind("TorchScript", True, _load_torchscript),
    "pt2": Kind("torch.export .pt2", True, _load_pt2),
    "distributed": Kind("a folder of torch.distributed.checkpoint", True, _load_distributed),
}
