"""prunecli prune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunecli.cli import options
from prunecli.cli.out import Out
from prunecli.errors import InputError


def prune(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="By default the recipe's.")] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", metavar="R", help="A file, or the name of a shipped recipe.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT", help="By default MODEL-RECIPE.safetensors here.")
    ] = None,
    arch: options.Arch = None,
    input: options.Input = None,
    data: options.Data = None,
    set: options.Set = [],  # noqa: B006
    key: options.Key = None,
    trust: options.Trust = False,
    resume: options.Resume = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and count, write nothing.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a model smaller as a recipe says, and prove it equal to the masked one."""
    out = Out(as_json=json, quiet=quiet)
    with out.failures():
        from prunecli.recipe.load import load, locate

        if not recipe:
            raise InputError("no recipe is given", hint="--recipe FILE, or a name from `prunecli recipes list`")
        asked = load(recipe, set, {"arch": arch, "input": input, "data": data})
        source = model or asked.model
        if source is None:
            raise InputError("no model is given", hint="prunecli prune MODEL --recipe ..., or model: in the recipe")
        place = output or Path(asked.output or f"{_stem(source)}-{locate(recipe).stem}.safetensors")
        from prunecli.pipeline.prune import prune as run
        from prunecli.render.progress import training_progress
        from prunecli.render.terminal import prune_report

        with training_progress(out.talk) as report:
            facts = run(
                asked, source, None if dry_run else place, options.opening(arch, None, key, trust),
                resume=resume, report=report,
            )  # fmt: skip
        out.result(facts, prune_report(facts), facts.output)


def _stem(source: str) -> str:
    return Path(source.partition("?")[0].rpartition(":")[2]).stem
