"""prunecli recipes"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from prunecli.cli import options
from prunecli.cli.out import Out

recipes = typer.Typer(help="Shipped recipes.", no_args_is_help=True)


@recipes.command("list")
def list_(json: options.Json = False) -> None:
    """Name and purpose of every shipped recipe."""
    out = Out(as_json=json)
    with out.failures():
        from rich.table import Table

        from prunecli.recipe.load import shipped

        purposes = {name: _purpose(path.read_text()) for name, path in shipped().items()}
        if json:
            out.document({"recipes": [{"name": n, "purpose": p} for n, p in purposes.items()]})
            return
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, purpose in purposes.items():
            table.add_row(name, purpose)
        out.table(table)


@recipes.command("show")
def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a recipe."""
    out = Out(as_json=False)
    with out.failures():
        from prunecli.recipe.load import locate

        sys.stdout.write(locate(name).read_text())


def _purpose(text: str) -> str:
    """The first comment."""
    return text.splitlines()[0].removeprefix("#").strip()
