"""A report as one HTML page without scripts."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def page(report: RenderableType) -> str:
    """The page."""
    console = Console(record=True, file=io.StringIO(), width=140, force_terminal=True, emoji=False)
    console.print(report)
    return console.export_html(inline_styles=True)
