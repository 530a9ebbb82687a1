"""Building architectures. The only place that knows networks by name."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunecli.arch import nets
from prunecli.arch.spec import ArchSpec
from prunecli.errors import ArchError
from prunecli.user_code import user_function

Shape = tuple[int, ...]

BUILTIN: dict[str, tuple[Callable[..., nn.Module], Shape]] = {
    **{
        f"cifar_resnet{6 * n + 2}": (lambda n=n, **options: nets.CifarResNet(n, **options), (1, 3, 32, 32))
        for n in (3, 5, 7, 9, 18)
    },
    "cifar_vgg16_bn": (nets.VGG16BN, (1, 3, 32, 32)),
    "cifar_wrn28_10": (nets.WideResNet, (1, 3, 32, 32)),
    "cifar_mobilenet_v1": (nets.MobileNetV1, (1, 3, 32, 32)),
    **{f"conv{n}": (lambda n=n, **options: nets.ConvNet(n, **options), (1, 3, 32, 32)) for n in (2, 4, 6)},
    "digits_net": (nets.DigitsNet, (1, 1, 8, 8)),
}


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters are born on meta; what a constructor computes (indices, position tables) stays real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            filled = args[0] if args else kwargs.get("tensor")  # those of torch.nn.init hand it on by its name
            if _is_meta(filled):
                return filled  # an initialiser has nothing to fill
        return func(*args, **kwargs)


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


@contextlib.contextmanager
def skeleton() -> Iterator[None]:
    """Build modules without storage for their parameters, and without touching the random state."""
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        yield


def build(spec: ArchSpec) -> nn.Module:
    """Build the network in training mode as its factory returns it.

    Raises:
        ArchError: the name or an option is unknown, or the factory fails.
    """
    factory, options = _factory(spec)
    try:
        module = factory(**(options | spec.options))
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        known = isinstance(error, TypeError | ValueError | RuntimeError)
        problem = str(error) if known else f"{type(error).__name__}: {error}"
        raise ArchError(f"cannot build {spec}: {problem}", hint="check the options after '?'") from error
    if not isinstance(module, nn.Module):
        raise ArchError(f"{spec} returned {type(module).__name__}, expected nn.Module")
    return module


def _factory(spec: ArchSpec) -> tuple[Callable[..., Any], dict[str, Any]]:
    if spec.source == "builtin":
        return _lookup(spec, list(BUILTIN), lambda: BUILTIN[spec.name][0]), {}
    if spec.source == "torchvision":
        import torchvision

        builder = _lookup(spec, torchvision.models.list_models(), lambda: _torchvision_builder(spec.name))
        parameters = inspect.signature(inspect.unwrap(builder)).parameters
        extra = {"weights_backbone": None} if "weights_backbone" in parameters else {}
        return builder, ({"init_weights": False} if spec.name in ("googlenet", "inception_v3") else {}) | extra
    if spec.source == "timm":
        timm = _timm()
        return _lookup(spec, timm.list_models(), lambda: lambda **o: timm.create_model(spec.name, **o)), {}
    return user_function(spec.place, spec.name), {}


def _lookup(spec: ArchSpec, known: list[str], get: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    if spec.name in known:
        return get()
    near = difflib.get_close_matches(spec.name, known, 3, 0.5)
    if spec.source == "builtin":
        import torchvision

        near += [
            f"torchvision:{n}" for n in difflib.get_close_matches(spec.name, torchvision.models.list_models(), 1, 0.8)
        ]
    raise ArchError(
        f"unknown architecture {str(spec)!r}",
        hint=f"nearest: {', '.join(near)}"
        if near
        else f"known {spec.source} names: {', '.join(sorted(known)[:12])} ...",
    )


def _torchvision_builder(name: str) -> Callable[..., Any]:
    import torchvision

    builder: Callable[..., Any] = torchvision.models.get_model_builder(name)
    return builder


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise ArchError("timm is not installed", hint="pip install 'prunecli[timm]'") from None


def default_input(spec: ArchSpec, module: nn.Module) -> Shape | None:
    """A sensible input shape (batch 1), or None where nothing tells it."""
    channels = _in_channels(module)
    if spec.source == "builtin":
        shape = BUILTIN[spec.name][1]
        return (1, channels or shape[1], *shape[2:])
    if spec.source == "torchvision":
        size = getattr(module, "image_size", None)  # vision transformers take one size only
        return (1, channels or 3, size, size) if isinstance(size, int) else _torchvision_input(spec.name, channels or 3)
    if spec.source == "timm":
        size = getattr(module, "default_cfg", {}).get("input_size")
        return (1, *_timm_input(spec, size)) if size else None
    return None


def _timm_input(spec: ArchSpec, usual: Shape) -> Shape:
    """What it was made for, where that is not the usual one."""
    channels, side = spec.options.get("in_chans", usual[0]), spec.options.get("img_size")
    return (int(channels), *(usual[1:] if side is None else (int(side), int(side))))


def _torchvision_input(name: str, channels: int) -> Shape | None:
    import torchvision

    if _torchvision_family(name) in ("detection", "optical_flow"):
        return (1, channels, *_SIZES.get(name, (224, 224)))
    weights = torchvision.models.get_model_weights(name)
    keywords = next(iter(weights)).transforms.keywords if len(weights) else {}
    crop = keywords.get("crop_size", 224)
    if isinstance(crop, int):
        return (1, channels, crop, crop)
    return (1, channels, 16, *crop)  # video: 16 frames


def arguments(spec: ArchSpec | None, images: torch.Tensor) -> tuple[Any, ...]:
    """What the network's forward takes for a batch of images (N, C, H, W)."""
    family = _torchvision_family(spec.name) if spec is not None and spec.source == "torchvision" else ""
    if family == "detection":
        return (list(images),)
    if family == "optical_flow":
        return (images, images.clone())
    return (images,)


# Where the metadata does not say it. RAFT needs at least 128 pixels a side.
_SIZES = {"ssdlite320_mobilenet_v3_large": (320, 320), "ssd300_vgg16": (300, 300)}


def _torchvision_family(name: str) -> str:
    """The package of ``torchvision.models`` that a builder lives in: ``detection``, ``video``, ..."""
    return _torchvision_builder(name).__module__.removeprefix("torchvision.models.").partition(".")[0]


def _in_channels(module: nn.Module) -> int | None:
    first = next((m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    return None if first is None else first.in_channels
