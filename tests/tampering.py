"""Files whose metadata lie."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def tampered(path: Path, change: object, folder: Path) -> Path:
    """A copy of the file with another journal."""
    with safe_open(path, "pt") as stream:
        metadata, tensors = stream.metadata(), {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    container = json.loads(metadata["prunecli"])
    change(container["journal"])  # type: ignore[operator]
    target = folder / "tampered.safetensors"
    save_file(tensors, target, {**metadata, "prunecli": json.dumps(container)})
    return target
