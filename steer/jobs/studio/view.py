"""What the page shows of runs, as HTML in the look of the report."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from PIL import Image

from steer.core.files.run_folder import PAGE_FILE, RunFolder
from steer.jobs.studio.runs import Update, was_stopped
from steer.pipeline.report import genealogy
from steer.pipeline.report.page import environment, inline, reward_over_time, run_view
from steer.pipeline.report.plots import number
from steer.pipeline.report.views import ImageView


_MOST_COLUMNS = 12
_STATES = {"drawing": "Drawing", "finished": "Finished", "stopped": "Stopped"}


@functools.cache
def _templates() -> Any:
    from jinja2 import PackageLoader

    return environment(PackageLoader("steer.jobs.studio"))


def styles() -> str:
    """The report's style for what stands inside `.run`, and the page's own."""
    return _templates().get_template("studio.css.j2").render().replace(":root", "&")


def shown(update: Update, reward: str) -> str:
    """A run as it is now, or as it ended."""
    if update.run is not None:
        return finished(update.run)
    found = _blocks(update)
    picture = None
    if update.image is not None:
        small = Image.fromarray(update.image)
        picture = ImageView(inline(small), *small.size, "the best so far", update.reward)
    return (
        _templates()
        .get_template("live.html.j2")
        .render(
            picture=picture,
            plot=reward_over_time(found, reward, None),
            rounds=found,
            max_columns=_MOST_COLUMNS,
        )
    )


def _blocks(update: Update) -> list[genealogy.Block]:
    """The population so far; nobody of the latest judging is dropped before the method says so."""
    found = genealogy.blocks(update.events, 0, update.steps)
    for cell in (c for block in found for stage in block.stages for c in stage.cells.values()):
        small = None if cell.key is None else update.images.get((0, *cell.key))
        cell.image = None if small is None else inline(Image.fromarray(small))
    for cell in found[-1].stages[-1].cells.values() if found else ():
        cell.state = "kept"
    return found


def finished(run: RunFolder) -> str:
    """A run that came to its end, or was stopped."""
    view = run_view(run)
    template = _templates().get_template("ended.html.j2")
    return template.render(run=view, p=view.prompts[0], max_columns=_MOST_COLUMNS)


def status(update: Update) -> str:
    """One line on how a run is, as Markdown."""
    if update.state == "failed":
        return f"**Cannot be drawn.** {update.error}"
    best = "" if update.reward is None else f", best reward {number(update.reward)}"
    share = f" {update.share:.0%}" if update.state == "drawing" else ""
    lines = [f"**{_STATES[update.state]}{share}**{best}", *update.notes]
    return "\n\n".join(lines)


def gallery(runs: Sequence[RunFolder]) -> str:
    """A visitor's runs, newest first: plain and steered side by side, with their scores."""
    cards = [
        {
            "p": run_view(run).prompts[0],
            "reward": run.data["arguments"]["reward"],
            "stopped": was_stopped(run.entries[0]),
            "page": run.folder / PAGE_FILE,
            "picture": run.folder / run.entries[0]["images"][0],
        }
        for run in reversed(runs)
    ]
    return _templates().get_template("gallery.html.j2").render(cards=cards)
