"""Facts as rich tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from prunecli.facts import (
    AnalyzeFacts,
    BudgetFacts,
    CutFacts,
    DynamicFacts,
    ExportFacts,
    Figures,
    FinetuneFacts,
    PruneFacts,
    Verified,
    WhyFacts,
)
from prunecli.units import human, percent

UNKNOWN = "-"


def analyze_report(facts: AnalyzeFacts) -> RenderableType:
    """Totals, layers, and what cannot be pruned."""
    parts: list[RenderableType] = [_totals(facts), _layers(facts)]
    frozen = [g for g in facts.groups if g.frozen]
    live = [g for g in facts.groups if not g.frozen]
    if facts.groups:
        channels = sum(g.channels for g in live)
        parts.append(Text(f"{len(live)} channel groups ({channels} channels) can be pruned, {len(frozen)} are frozen"))
        parts += [Text(f"  {g.name} ({g.channels}): {g.frozen}", style="dim") for g in frozen[:12]]
        if len(frozen) > 12:
            parts.append(Text(f"  and {len(frozen) - 12} more (--json lists all)", style="dim"))
    if facts.unknown_ops:
        listed = ", ".join(f"{name} x{count}" for name, count in sorted(facts.unknown_ops.items()))
        parts.append(Text(f"ops without a rule, their channels are frozen: {listed}", style="yellow"))
    parts += [_why(why) for why in facts.why]
    return Stack(*parts)


def _totals(facts: AnalyzeFacts) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    shape = "x".join(map(str, facts.input)) if isinstance(facts.input, list) else facts.input or UNKNOWN
    rows = [
        ("model", f"{facts.model} ({facts.format})"),
        ("architecture", f"{facts.arch or UNKNOWN}, input {shape}"),
        ("params", f"{human(facts.params)}, {percent(facts.sparsity)} zeros"),
        ("FLOPs", _number(facts.flops) + _parts(facts.flops_by_op)),
        ("size", _size(facts.bytes)),
    ]
    if facts.accuracy is not None:
        rows.append(("top-1", percent(facts.accuracy)))
    if facts.dynamic is not None:
        rows.append((f"FLOPs of {facts.dynamic.images} images", _spread(facts.dynamic)))
    for name, value in rows:
        table.add_row(f"[bold]{name}[/]", escape(value))
    return table


def _spread(facts: DynamicFacts) -> str:
    middle = ", ".join(f"{name} % {human(value)}" for name, value in facts.percentiles.items())
    return f"mean {human(facts.mean)}, {human(facts.least)} to {human(facts.most)} (percentiles {middle})"


def _parts(counts: Mapping[str, int]) -> str:
    """The kinds of ops that FLOPs belong to, in words."""
    return f" ({', '.join(f'{name} {human(count)}' for name, count in counts.items())})" if len(counts) > 1 else ""


def _layers(facts: AnalyzeFacts) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("layer", "type", "shape"):
        table.add_column(name, overflow="fold")
    for name in ("params", "zeros", "FLOPs", "dead"):
        table.add_column(name, justify="right")
    for layer in facts.layers:
        zeros = 1 - layer.nonzero / layer.params if layer.params else 0.0
        table.add_row(
            escape(layer.name or "(model)"),
            layer.type,
            "x".join(map(str, layer.shape)),
            human(layer.params),
            percent(zeros) if zeros else "",
            _number(layer.flops),
            str(layer.dead) if layer.dead else "",
        )
    return table


def _why(why: WhyFacts) -> RenderableType:
    group = why.group
    verdict = f"frozen: {group.frozen}" if group.frozen else f"can be pruned, one channel carries {group.params} params"
    lines = [Text(f"{why.role} {group.name}: {group.channels} channels, {verdict}", style="bold")]
    sections = (("members", group.members), ("tied by", why.ties), ("read by", why.readers))
    lines += [Text(f"  {title}: {', '.join(items)}") for title, items in sections if items]
    return Stack(*lines)


def prune_report(facts: PruneFacts) -> RenderableType:
    """Before, after, proof and budget."""
    stages = {"before": facts.before, "pruned": facts.pruned, "recovered": facts.recovered, "after": facts.after}
    parts: list[RenderableType] = [_stages({n: f for n, f in stages.items() if f is not None})]
    parts.append(Text(f"{facts.removed_channels} channels removed{_widths(facts.cuts)}"))
    parts += _proof(facts.verified, facts.budget)
    if facts.found:
        parts.append(_found(facts.predicted, facts.found))
    if facts.output is None:
        parts.append(Text("dry run: nothing was written", style="yellow"))
    return Stack(*parts)


def finetune_report(facts: FinetuneFacts) -> RenderableType:
    """Before and after."""
    return Stack(_stages({"before": facts.before, "after": facts.after}))


def export_report(facts: ExportFacts) -> RenderableType:
    """One line."""
    difference = "" if not facts.max_abs_error else f", largest difference {facts.max_abs_error:.1e}"
    return Text(f"{facts.format}, {_size(facts.bytes)}, checked in {facts.checked}{difference}")


def _stages(stages: dict[str, Figures]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in stages:
        table.add_column(name, justify="right")
    all_figures = list(stages.values())
    table.add_row("params", *_with_share([f.params for f in all_figures]))
    table.add_row("non-zero", *_with_share([f.nonzero for f in all_figures]))
    table.add_row("FLOPs", *_with_share([f.flops for f in all_figures]))
    table.add_row("bytes", *_with_share([f.bytes for f in all_figures]))
    if any(f.accuracy is not None for f in all_figures):
        table.add_row("top-1", *(UNKNOWN if f.accuracy is None else percent(f.accuracy) for f in all_figures))
    return table


def _with_share(values: Sequence[int | None]) -> list[str]:
    first = values[0]
    shown = [_number(first)]
    for value in values[1:]:
        share = f" ({percent(value / first)})" if first and value is not None else ""
        shown.append(f"{_number(value)}{share}")
    return shown


def _widths(cuts: Sequence[CutFacts]) -> str:
    shown = ", ".join(f"{c.group} {c.before} -> {c.after}" for c in cuts[:4])
    return f": {shown}{' ...' if len(cuts) > 4 else ''}" if cuts else ""


def _proof(verified: Verified | None, budget: BudgetFacts | None) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if budget is not None:
        parts.append(Text(f"budget {budget.unit}: asked {percent(budget.asked)}, met {percent(budget.met)}"))
    if verified is not None:
        parts.append(
            Text(
                f"verified: equal to the masked model within {verified.max_rel_error:.1e} of its largest output "
                f"({verified.inputs} inputs, {verified.dtype})",
                style="green",
            )
        )
    return parts


def _found(predicted: Mapping[str, float], found: Mapping[str, float]) -> RenderableType:
    """What a method said before it trained, and what came of it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "expected", "found"):
        table.add_column(name, justify="right" if name else "left")
    for name in dict.fromkeys([*predicted, *found]):
        table.add_row(escape(name), *(f"{side[name]:.4g}" if name in side else "" for side in (predicted, found)))
    return table


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else human(value)


def _size(size: int) -> str:
    return f"{human(size)}B"
