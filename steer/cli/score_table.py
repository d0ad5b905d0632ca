"""The table of scores in the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile

from rich.table import Table

from steer.cli.terminal import escape
from steer.core.files.score_log import Row, mean_scores, rank_rows, score_text


MAX_ROWS = 40
_BEST, _WORST = 24, 12


def ranking(rows: Sequence[Row], rewards: Sequence[str]) -> Table:
    """Rows by their first reward, best first, and the means; the middle of many is left out.

    Files are named within the folder that they share, prompts are shown where they differ.
    """
    folder = _shared_folder(rows)
    rows, means = rank_rows(rows, rewards[0]), mean_scores(rows, rewards)
    show_prompts = len({row.prompt for row in rows}) > 1
    table = Table(box=None, pad_edge=False, header_style="dim", show_footer=True)
    table.add_column("", justify="right", style="dim")
    for k, (name, mean) in enumerate(means.items()):
        style = "bold" if k == 0 else ""
        footer = f"[bold]{score_text(mean)}[/]"
        table.add_column(escape(name), footer, justify="right", style=style, no_wrap=True)
    count = f"[dim]mean of {len(rows)} image{'' if len(rows) == 1 else 's'}[/]"
    where = f"file in {escape(folder)}" if folder else "file"
    table.add_column(where, count, overflow="fold", ratio=3)
    if show_prompts:
        table.add_column("prompt", overflow="ellipsis", no_wrap=True, style="dim", ratio=4)
    places = range(len(rows))
    if len(rows) > MAX_ROWS:
        places = [*places[:_BEST], *places[-_WORST:]]
    last = -1
    for place in places:
        row = rows[place]
        if place != last + 1:
            table.add_row("", *("" for _ in means), f"[dim]… {place - last - 1} more[/]")
        scores = (score_text(row.scores[name]) for name in means)
        prompt = (escape(row.prompt),) if show_prompts else ()
        table.add_row(str(place + 1), *scores, escape(row.path[len(folder) :]), *prompt)
        last = place
    table.add_section()
    return table


def _shared_folder(rows: Sequence[Row]) -> str:
    """The folder that all paths begin with, with its slash; empty where there is none."""
    folders = [os.path.dirname(row.path).split(os.sep) for row in rows]
    shared = [
        parts[0] for parts in takewhile(lambda p: len(set(p)) == 1, zip(*folders, strict=False))
    ]
    return os.sep.join(shared) + os.sep if shared and shared != [""] else ""
