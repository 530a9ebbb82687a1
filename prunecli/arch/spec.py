"""The text form of an architecture. No torch here.

cifar_resnet20                      built in
torchvision:resnet50?num_classes=10
timm:vit_small_patch16_224
path/to/net.py:build                a function in a user's file
package.module:factory              a function in an installed module
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from prunecli.errors import ArchError

_GRAMMAR = "NAME, torchvision:NAME, timm:NAME, FILE.py:FUNCTION or MODULE:FUNCTION, with ?key=value at the end"


@dataclass(frozen=True)
class ArchSpec:
    """`source` is builtin, torchvision, timm, file or module; `options` are keyword arguments of the factory."""

    source: str
    place: str  # path or module of a user's factory
    name: str
    options: dict[str, int | float | bool | str] = field(default_factory=dict)

    @property
    def is_registry(self) -> bool:
        """Whether the name refers to code that was installed as an architecture library."""
        return self.source in ("builtin", "torchvision", "timm")

    def with_options(self, **options: int | float | bool | str) -> ArchSpec:
        """The same architecture with more options."""
        return ArchSpec(self.source, self.place, self.name, self.options | options)

    def __str__(self) -> str:
        head = {"builtin": self.name, "file": f"{self.place}:{self.name}", "module": f"{self.place}:{self.name}"}.get(
            self.source, f"{self.source}:{self.name}"
        )
        tail = "&".join(f"{k}={v}" for k, v in sorted(self.options.items()))
        return f"{head}?{tail}" if tail else head


def parse(text: str) -> ArchSpec:
    """Read the text form.

    >>> str(parse("torchvision:resnet18?num_classes=10"))
    'torchvision:resnet18?num_classes=10'

    Raises:
        ArchError: the text has none of the forms.
    """
    head, _, query = text.partition("?")
    options = {key: _value(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    place, _, name = head.rpartition(":")
    if not name or (query and not options):
        raise ArchError(f"{text!r} is not an architecture", hint=f"give {_GRAMMAR}")
    if not place:
        return ArchSpec("builtin", "", name, options)
    if place in ("torchvision", "timm"):
        return ArchSpec(place, "", name, options)
    return ArchSpec("file" if place.endswith(".py") else "module", place, name, options)


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
