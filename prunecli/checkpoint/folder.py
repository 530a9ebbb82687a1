"""Folders that hold a checkpoint in one file or in several."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from prunecli.errors import CheckpointError

_FORMS = (("*.safetensors", "model.safetensors"), ("pytorch_model*.bin", "pytorch_model.bin"))  # the better one first
_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar"}


def is_distributed(path: Path) -> bool:
    """Whether ``torch.distributed.checkpoint`` wrote this folder."""
    return (path / ".metadata").is_file()


def weight_files(path: Path) -> list[Path]:
    """The file itself, or those of a folder that hold its weights: what an index lists, or the one of the usual name.

    Raises:
        CheckpointError: the index is no index, or a file of it is missing.
    """
    if not path.is_dir():
        return [path]
    if is_distributed(path):
        return sorted(path.glob("*.distcp"))
    for pattern, usual in _FORMS:
        if indexes := sorted(path.glob(f"{pattern}.index.json")):
            return _indexed(indexes[0])
        if (path / usual).is_file():
            return [path / usual]
        if found := sorted(path.glob(pattern)):
            return found
    return []


def _indexed(index: Path) -> list[Path]:
    names = _json(index).get("weight_map")
    if not isinstance(names, Mapping) or not names or any(Path(str(n)).name != n for n in names.values()):
        raise CheckpointError(f"{index} is no index of weights", hint="its weight_map names a file for every tensor")
    files = [index.parent / name for name in sorted(set(names.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{index.parent} lacks {', '.join(missing[:3])} ({len(missing)} of {len(files)} files)",
            hint="was the download or the copy interrupted?",
        )
    return files


def configuration(path: Path) -> Mapping[str, object] | None:
    """What ``config.json`` says, where there is one.

    Raises:
        CheckpointError: it cannot be read.
    """
    file = path / "config.json"
    return _json(file) if file.is_file() else None


def _json(path: Path) -> Mapping[str, object]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return found


def candidates(path: Path) -> list[str]:
    """A few files in a folder that may be checkpoints, for messages."""
    found = (p for p in itertools.chain(path.glob("*"), path.glob("*/*")) if p.suffix in _SUFFIXES and p.is_file())
    return [str(p) for p in itertools.islice(found, 3)]
