"""prunecli finetune"""

from __future__ import annotations

from typing import Annotated

import typer

from prunecli.cli import options
from prunecli.cli.out import Out


def finetune(
    model: options.Model,
    output: options.Output,
    data: options.Data = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", metavar="R", help="Training settings.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="Distil from this model.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0, metavar="N", help="Instead of the recipe's.")] = None,
    resume: options.Resume = False,
    arch: options.Arch = None,
    input: options.Input = None,
    set: options.Set = [],  # noqa: B006
    key: options.Key = None,
    trust: options.Trust = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Win accuracy back; widths and zeros stay as they are."""
    out = Out(as_json=json, quiet=quiet)
    with out.failures():
        from prunecli.recipe.load import load

        flags = {"arch": arch, "input": input, "data": data, "train.epochs": epochs}
        asked = load(recipe or "finetune-cifar10", set, flags)
        from prunecli.pipeline.finetune import finetune as run
        from prunecli.render.progress import training_progress
        from prunecli.render.terminal import finetune_report

        with training_progress(out.talk) as report:
            facts = run(
                asked, model, output, options.opening(arch, None, key, trust),
                teacher=teacher, resume=resume, report=report,
            )  # fmt: skip
        out.result(facts, finetune_report(facts), facts.output)
