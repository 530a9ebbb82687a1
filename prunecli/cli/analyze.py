"""prunecli analyze"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli import options
from prunecli.cli.out import Out
from prunecli.facts import AnalyzeFacts, to_json

if TYPE_CHECKING:
    from rich.console import RenderableType


def analyze(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Checkpoints or architectures.")],
    arch: options.Arch = None,
    input: options.Input = None,
    data: options.Data = None,
    key: options.Key = None,
    trust: options.Trust = False,
    check: Annotated[list[str], typer.Option(metavar="COND", help="Exit 1 unless it holds: 'flops<=20M'.")] = [],  # noqa: B006
    why: Annotated[str | None, typer.Option(metavar="LAYER", help="Explain the channel groups of a layer.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as a page.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show where the cost and the zeros are."""
    out = Out(as_json=json, quiet=quiet)
    with out.failures():
        from prunecli.pipeline.checks import parse_check, require
        from prunecli.render.terminal import analyze_report

        checks = [parse_check(text) for text in check]
        options.inputs_of(input)
        from prunecli.pipeline.analyze import analyze as run

        found = [run(m, options.opening(arch, input, key, trust), data=data, why=why) for m in models]
        reports = [analyze_report(facts) for facts in found]
        if html is not None:
            _write_page(html, reports)
        _show(out, found, reports)
        require(checks, found)


def _show(out: Out, found: list[AnalyzeFacts], reports: list[RenderableType]) -> None:
    for facts in found:
        out.notes(facts.notes)
    if out.as_json:
        documents = [to_json(facts) for facts in found]
        out.document(documents[0] if len(documents) == 1 else {"models": documents})
        return
    for report in reports:
        out.table(report)


def _write_page(path: Path, reports: list[RenderableType]) -> None:
    from rich.console import Group

    from prunecli.checkpoint.write import atomic
    from prunecli.render.html import page

    with atomic(path) as stream:
        stream.write(page(Group(*reports)).encode())
