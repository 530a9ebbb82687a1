"""Recognise an architecture by the names and shapes of its tensors alone.

The names are looked up in an index (a hash of all tensor names for each known architecture, cached on disk);
only candidates with the same names are built, without storage, to compare shapes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunecli.arch.registry import BUILTIN, build, skeleton
from prunecli.arch.spec import ArchSpec, parse
from prunecli.cache import cache_dir
from prunecli.checkpoint.names import telling
from prunecli.errors import ArchError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Guess:
    """The architecture that was taken, and why this one."""

    spec: ArchSpec
    why: str


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes, without the counters of batch norm (old checkpoints lack them)."""
    return {n: tuple(t.shape) for n, t in state.items() if telling(n)}


def named_in(config: Mapping[str, Any]) -> ArchSpec | None:
    """The architecture that a configuration of timm names, with the arguments that it was made with."""
    name, told = config.get("architecture"), config.get("model_args")
    if not isinstance(name, str):
        return None
    options = {"num_classes": config.get("num_classes"), **(told if isinstance(told, dict) else {})}
    plain = {str(key): value for key, value in options.items() if isinstance(value, int | float | bool | str)}
    return parse(f"timm:{name.partition('.')[0]}").with_options(**plain)


def guess(state: Mapping[str, Tensor]) -> Guess | None:
    """The architecture whose tensors have exactly these names and shapes, up to the number of classes.

    Built-in ones win over torchvision's, those over timm's: where names and shapes agree they compute the same.

    Raises:
        ArchError: two architectures of one source fit.
    """
    wanted = shapes_of(state)
    for names in _candidates(wanted):
        fits = [spec for spec in (_fit(parse(name), wanted) for name in names) if spec is not None]
        if len(fits) > 1:
            listed = " and ".join(str(f) for f in fits)
            raise ArchError(f"the checkpoint fits {listed}", hint=f"choose one with --arch {fits[0]}")
        if fits:
            return Guess(fits[0], f"names and shapes of all {len(wanted)} tensors fit")
    return None


def _candidates(wanted: Shapes) -> Iterator[list[str]]:
    """Networks whose tensors may have these names, source by source: the next library is not imported in vain."""
    key = _key(wanted)
    for source in ("builtin", "torchvision"):
        yield [name for name, known in index_of(source).items() if known == key]
    yield _timm_names(wanted)


def _key(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def _fit(spec: ArchSpec, wanted: Shapes) -> ArchSpec | None:
    """The spec with the options under which all shapes agree, if there are any."""
    built = _shapes(spec)
    if built is None or built.keys() != wanted.keys():
        return None
    differing = [n for n in wanted if wanted[n] != built[n]]
    if not differing:
        return spec
    options: dict[str, int] = {}
    classes = {wanted[n][0] for n in differing if _only_dim_differs(wanted[n], built[n], 0)}
    inputs = {wanted[n][1] for n in differing if _only_dim_differs(wanted[n], built[n], 1)}
    if len(classes) > 1 or len(inputs) > 1:
        return None
    if classes:
        options["num_classes"] = classes.pop()
    if inputs and spec.source == "builtin":
        options["in_channels"] = inputs.pop()
    chosen = spec.with_options(**options)
    return chosen if _shapes(chosen) == wanted else None


def _only_dim_differs(a: tuple[int, ...], b: tuple[int, ...], dim: int) -> bool:
    return len(a) == len(b) > dim and a[dim] != b[dim] and a[:dim] + a[dim + 1 :] == b[:dim] + b[dim + 1 :]


def _shapes(spec: ArchSpec) -> Shapes | None:
    try:
        with skeleton(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = build(spec)
    except ArchError:
        return None
    return shapes_of(module.state_dict())


def index_of(source: str) -> dict[str, str]:
    """{spec: hash of its tensor names} for a source, from the cache where it is current."""
    if source == "builtin":
        names, stamp = list(BUILTIN), version("prunecli")
    else:
        import torchvision

        models = [n for n in torchvision.models.list_models() if not n.startswith("quantized")]
        names, stamp = [f"torchvision:{n}" for n in models], version("torchvision")
    path = cache_dir() / f"index-{source}-{stamp}.json"
    try:
        cached: dict[str, str] = json.loads(path.read_text())
        if cached.keys() == set(names):
            return cached
    except (OSError, ValueError):
        pass
    index = {name: _key(_shapes(parse(name)) or ()) for name in names}
    _save(path, index)
    return index


def _save(path: Path, index: dict[str, str]) -> None:
    """A cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(index, file)
        os.replace(file.name, path)
    except OSError:
        return


def _timm_names(wanted: Shapes) -> list[str]:
    """timm models (when installed) whose configured first layer and classifier are among the names."""
    try:
        import timm
        from timm.models import get_pretrained_cfg
    except ImportError:
        return []
    names = []
    for name in timm.list_models():
        config = get_pretrained_cfg(name)
        first, last = getattr(config, "first_conv", None), getattr(config, "classifier", None)
        ends = [f"{e}.weight" for e in (first, last) if isinstance(e, str)]
        if len(ends) == 2 and all(e in wanted for e in ends):
            names.append(f"timm:{name}")
    return _first_fit(names, wanted)


def _first_fit(names: list[str], wanted: Shapes) -> list[str]:
    """Among timm's many variants of one network the first that fits stands for all."""
    for name in names:
        if _fit(parse(name), wanted) is not None:
            return [name]
    return []
