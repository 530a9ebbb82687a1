"""Recovery without training: data only, no labels, no gradients.

The layers that read removed channels are fitted anew, so that on a few images they give what they gave before the
cut (least squares, layer by layer, each on what the smaller model really feeds it); then batch norm gets the
statistics of the smaller model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunecli.checkpoint.journal import Journal
from prunecli.graph.copying import copied, like
from prunecli.graph.tape import Example, record
from prunecli.graph.tensors import sharing
from prunecli.surgery.border import Bordered

Images = Callable[[], Iterator[Tensor]]
RIDGE = 1e-4  # of the mean variance of what a layer reads
PLACES = 32  # positions of a feature map that are looked at, for each image
READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose weights read along their second dim
UNKNOWN = "only linear layers and two-dimensional convolutions without groups and with padding by zeros are fitted"
SHARED = "another module reads their weights"
LARGEST = 6144  # inputs times taps of a layer; beyond that the normal equations do not pay


@dataclass(frozen=True)
class Refitted:
    """What came of a fit.

    Attributes:
        module: with new weights.
        left: layers that read removed channels and stay as they were cut, each with the reason.
    """

    module: nn.Module
    left: Mapping[str, str]


def recalibrate(module: nn.Module, images: Images) -> nn.Module:
    """A copy whose batch-norm statistics are the averages over the images."""
    twin = copied(module).eval()
    norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        for batch in images():
            twin(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return twin.eval()


def refit(dense: nn.Module, smaller: nn.Module, journal: Journal, images: Images) -> Refitted:
    """A copy of `smaller` whose readers of removed channels are fitted to what they gave in `dense`.

    ``W' = argmin sum |W x - W' x'|^2 + ridge |W' - W_kept|^2``, with x what the layer reads in the dense model and x'
    what it reads in the smaller one, whose earlier layers are fitted already.

    Args:
        dense: before the cut.
        smaller: after it.
        journal: of the cut.
        images: the same images each time it is called.
    """
    twin = copied(smaller).eval()
    left: dict[str, str] = {}
    readers = {name: layer for name, layer in dense.eval().named_modules() if isinstance(layer, READERS)}
    shared = sharing(dense) | record(dense, Example((next(iter(images())),))).lent()
    for name, layer in readers.items():
        if (f"{name}.weight", 1) not in journal.kept:
            continue
        reason = SHARED if name in shared else _unknown(layer)
        reason = reason or _refit_layer(dense, twin, name, journal, images)
        if reason:
            left[name] = reason
    return Refitted(twin, left)


def _unknown(layer: nn.Module) -> str:
    """Why a layer is not fitted, if not every output reads every input; else nothing."""
    plain = isinstance(layer, nn.Linear)
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return "" if plain else UNKNOWN


def _refit_layer(dense: nn.Module, twin: nn.Module, name: str, journal: Journal, images: Images) -> str:
    """Fit one layer; the reason where it stays as it is, else nothing."""
    old: Any = dense.get_submodule(name)
    new: Any = twin.get_submodule(name)
    weight = new.weight
    assert isinstance(weight, Tensor)
    if (reads := weight[0].numel()) > LARGEST:
        return f"each output reads {reads:,} values, more than {LARGEST:,}"
    width = reads + 1  # a column of ones for the bias
    rows = torch.tensor(journal.kept.get((f"{name}.weight", 0), tuple(range(len(old.weight)))))
    gram, moment = (weight.new_zeros((width, count), dtype=torch.float64) for count in (width, len(rows)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for batch in images():
            with _inputs(old) as before, _inputs(new) as now:
                dense(batch)
                twin(batch)
            if [_places(old, was) for was in before] != [_places(new, x) for x in now]:
                return "another module reads its weight, or data decides what it reads"
            for was, x in zip(before, now, strict=True):
                given = _given(old, was)[:, rows]
                wanted = given - new.border(x.shape[2:]) if isinstance(new, Bordered) else given  # the border stays
                found, target = _samples(new, x, wanted, generator)
                read = F.pad(found, (0, 1), value=1.0).double()
                gram += read.T @ read
                moment += read.T @ target.double()
        if (places := int(gram[-1, -1])) < 2 * width:  # too few would be learned by heart
            return f"{places:,} places of the images are fewer than twice what an output reads (recover.images)"
        start = F.pad(weight.flatten(1).double(), (0, 1)).T
        start[-1] = 0 if new.bias is None else new.bias.double()
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(width).to(gram)
        if new.bias is None:  # the column of ones must not be used
            gram[-1], gram[:, -1], moment[-1] = 0, 0, 0
            ridge[-1, -1] = 1.0
        fitted = torch.linalg.solve(gram + ridge, moment + ridge @ start)
        new.weight = like(weight, fitted[:-1].T.reshape(weight.shape).to(weight.dtype))
        if isinstance(new.bias, Tensor):
            new.bias = like(new.bias, fitted[-1].to(weight.dtype))
    return ""


@contextmanager
def _inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer reads, each time it runs."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def _places(layer: nn.Module, x: Tensor) -> list[int]:
    """The sizes of what a layer reads, without the channels."""
    channels = 1 if isinstance(layer, nn.Conv2d) else x.ndim - 1
    return [size for dim, size in enumerate(x.shape) if dim != channels]


def _given(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer makes of its input, channels second."""
    result: Tensor = layer.forward(x)
    return result if isinstance(layer, nn.Conv2d) else result.movedim(-1, 1)


def _samples(layer: nn.Module, x: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(places, inputs times taps) and (places, outputs) at a few random places of every image."""
    if isinstance(layer, nn.Conv2d):
        read = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    else:
        read = x.movedim(-1, 1).flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    given = target.flatten(2) if target.ndim > 2 else target.unsqueeze(2)
    places = torch.randperm(read.shape[2], generator=generator)[:PLACES]
    return read[:, :, places].transpose(1, 2).flatten(0, 1), given[:, :, places].transpose(1, 2).flatten(0, 1)
