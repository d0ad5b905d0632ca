"""The table that a finished run shows in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from steer.cli.terminal import escape
from steer.pipeline.report.plots import number


if TYPE_CHECKING:
    from steer.pipeline.report.views import ImageView, RunView


def summary(view: RunView) -> Group:
    """Prompts with their rewards and verdicts, then the means and the cost."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("prompt", overflow="fold")
    table.add_column("plain", justify="right", style="yellow")
    table.add_column("guided", justify="right", style="bold")
    if view.all_met:
        table.add_column("oracle", justify="center")
    for p in view.prompts:
        best = p.guided[0]
        row = [escape(p.prompt), number(p.base.reward if p.base else None), number(best.reward)]
        if view.all_met:
            row.append(f"{_mark(p.base)} → {_mark(best)}" if p.base else _mark(best))
        table.add_row(*row)
    return Group(table, Text(), *_totals(view))


def _mark(image: ImageView) -> str:
    if image.verdict is None:
        return "–"
    return "[green]✓[/]" if image.verdict.all_met else "[red]✗[/]"


def _totals(view: RunView) -> list[Text]:
    lines = []
    base, guided = view.reward_means
    start = f"{number(base)} → " if base is not None else ""
    lines.append(f"Mean reward ({escape(view.reward)})  {start}[bold]{number(guided)}[/]")
    if view.all_met:
        before, after, of = view.all_met
        start = f"{before} → " if before is not None else ""
        lines.append(f"Oracle, all met  {start}[bold]{after}[/] of {of}")
    for judge in view.judges:
        start = f"{number(judge.base)} → " if judge.base is not None else ""
        lines.append(f"Judge ({escape(judge.name)})  {start}[bold]{number(judge.guided)}[/]")
    cost = view.cost
    lines.append(
        f"Compute  [bold]{cost.multiple:.1f}×[/] a plain call, {cost.total_seconds:.1f} s: "
        f"{cost.denoiser_rows} rows, {cost.decodes} decodes, {cost.reward_calls} scores"
    )
    return [Text.from_markup(line) for line in lines]
