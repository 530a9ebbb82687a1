"""What a model costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prunecli.checkpoint.folder import weight_files
from prunecli.cost.measure import count_flops
from prunecli.facts import Figures
from prunecli.model import Model
from prunecli.units import human

BULKY = 1.5  # times its tensors: names and alignment take less, an average of the weights more


def count(tensors: Mapping[str, Tensor]) -> tuple[int, int, float]:
    """(elements, non-zero elements, share of zeros)."""
    params = sum(t.numel() for t in tensors.values())
    nonzero = sum(int(torch.count_nonzero(t != 0)) for t in tensors.values())  # floats of 8 bits only compare
    return params, nonzero, 1 - nonzero / params if params else 0.0


def figures(model: Model, module: nn.Module, size: int, accuracy: float | None = None) -> Figures:
    """Figures of `module`, a stage of `model`.

    Args:
        model: gives the input.
        module: what is counted.
        size: bytes of its file.
        accuracy: where it is known.
    """
    params, nonzero, sparsity = count(dict(module.named_parameters()))
    return Figures(params, nonzero, sparsity, count_flops(module, model.example), size, accuracy)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def stored_bytes(model: Model) -> int:
    """Size of the file (all weights of a folder), or of the tensors where there is no file."""
    return tensor_bytes(model.module) if model.path is None else path_bytes(model.path)


def weight_bytes(model: Model) -> int:
    """What a smaller file is compared with: the file on disk, or the tensors where there is none, or where it holds
    far more than they take.
    """
    tensors, stored = tensor_bytes(model.module), stored_bytes(model)
    return stored if stored <= BULKY * tensors else tensors


def beside_the_weights(model: Model) -> list[str]:
    """Says what of a file is not counted: optimizer states, averages, masks."""
    other = stored_bytes(model) - weight_bytes(model)
    return [f"{human(other)}B of {model.source} are no weights of the model and are not counted"] if other else []


def path_bytes(path: Path) -> int:
    """Size of a file, or of the weights in a folder."""
    return sum(file.stat().st_size for file in weight_files(path))
