"""The parameters and buffers of a module."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers; a shared tensor comes once, under its first name.

    Torch's own generators give the same, but walk the tree of modules for each of the two.
    """
    parts = [(f"{path}." if path else "", part) for path, part in module.named_modules()]
    for kind in ("_parameters", "_buffers"):
        seen = set()
        for prefix, part in parts:
            for name, tensor in getattr(part, kind).items():
                if tensor is not None and tensor not in seen:
                    seen.add(tensor)
                    yield prefix + name, tensor
