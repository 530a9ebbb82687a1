"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.errors import InputError
from prunecli.inputs import Inputs, parse_inputs

if TYPE_CHECKING:
    from prunecli.model import Opening

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A checkpoint, or an architecture such as torchvision:resnet50.")
]
Arch = Annotated[str | None, typer.Option(metavar="A", help="Architecture of the checkpoint; guessed by default.")]
Input = Annotated[
    str | None,
    typer.Option(metavar="SHAPE", help="Shape, batch included: 1x3x224x224; several: 1x16:int64,1x4."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="D",
        help="digits, folder:PATH, imagenet:ROOT, webdataset:PATH, images:PATH, cifar10[:ROOT], fake:SHAPE, "
        "FILE.py:build.",
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Where the result goes.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the recipe: method.p=1.")
]
Key = Annotated[str | None, typer.Option(metavar="K", help="Entry of a nested checkpoint that holds the weights.")]
Trust = Annotated[bool, typer.Option("--trust", help="Allow files that execute code when they are read.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run whose training was stopped.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Nothing on stderr but errors.")]


def opening(arch: str | None, shape: str | None, key: str | None, trust: bool) -> Opening:
    """How the model is opened.

    Raises:
        InputError: the shape is none.
    """
    from prunecli.model import Opening

    return Opening(arch, inputs_of(shape), key, trust)


def inputs_of(text: str | None) -> Inputs | None:
    """The value of --input.

    Raises:
        InputError: it is no shape.
    """
    try:
        return None if text is None else parse_inputs(text)
    except ValueError as error:
        raise InputError(f"--input {error}", hint="--input 1x3x32x32") from error
