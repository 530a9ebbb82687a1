"""The application. Importing it loads no torch: `--help` and recipe errors are instant."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from prunecli.cli.analyze import analyze
from prunecli.cli.export import export
from prunecli.cli.finetune import finetune
from prunecli.cli.prune import prune
from prunecli.cli.recipes import recipes

app = typer.Typer(
    name="prunecli",
    help="Post-hoc surgery on PyTorch models: every cut is proven equal to the masked model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(analyze)
app.command()(prune)
app.command()(finetune)
app.command()(export)
app.add_typer(recipes, name="recipes")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"prunecli {version('prunecli')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Post-hoc surgery on PyTorch models: every cut is proven equal to the masked model."""


def main() -> None:
    """Entry point of the `prunecli` script."""
    # Threads that wait for each other spin; beside another busy process that takes most of the time.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    app()
