"""Lazy layers, which take their widths from the first input that they see."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from prunecli.errors import InputError
from prunecli.graph.tape import Example, ForwardError
from prunecli.graph.tensors import Module, named_tensors


def is_lazy(module: nn.Module) -> bool:
    """Whether some layer has not seen an input yet, though it may have the values of a file."""
    return any(isinstance(part, LazyModuleMixin) for part in module.modules())


def insist_on_values(module: nn.Module) -> None:
    """A network whose values are its user's must have them.

    Raises:
        InputError: a lazy layer has none yet.
    """
    for name, tensor in named_tensors(module):
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"{name} has no values yet: its layer is lazy", hint="run the model once on an input")


def awakened(module: Module, example: Example) -> Module:
    """The module in eval mode with its lazy layers as they are after one input, in place; new values are random.

    Raises:
        ForwardError: it does not run on this input.
    """
    device = "meta" if any(tensor.is_meta for _, tensor in named_tensors(module)) else None
    given = example.to(device=device)
    try:
        with torch.no_grad():
            module.eval()(*given.args, **given.kwargs)
    except Exception as error:  # the user's forward may raise anything
        raise ForwardError(error) from error
    return module
