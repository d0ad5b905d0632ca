"""`steer compare`: arms side by side, from a YAML file into a folder with tables and a page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer.cli.exits import INTERRUPTED, bad_input


if TYPE_CHECKING:
    from steer.jobs.compare.run import Run

Config = Annotated[Path, typer.Argument(help="A YAML file: arms, prompts, seeds, judges, ...")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Folder for everything. Default: the file's name.", show_default=False
    ),
]
Check = Annotated[
    bool,
    typer.Option("--check", help="Read configuration and prompts, say what would be done."),
]


def compare(config: Config, out: Out = None, check: Check = False) -> None:
    """Compare arms (base, tuned, steered, blended) on the same prompts and noise.

    Writes images, results.json, arms.csv, pairs.csv, scores.csv and report.html. Interrupt it at
    any time: the same command continues. On several GPUs or machines, which share the folder:
    accelerate launch --multi_gpu -m steer.cli.app compare CONFIG.yaml

    Example: steer compare examples/compare_shapes.yaml --out results
    """
    with bad_input():
        from steer.jobs.compare import read

        comparison = read(config)
        folder = out or Path(config.stem)
        if check:
            _say(_plan(comparison, folder))
            return
        from steer.jobs.compare.run import Run

        _quiet()
        run = Run(comparison, folder)
        _run(run, folder)


def _run(run: Run, folder: Path) -> None:
    """Draw and score what is missing, with bars in the first process, then write and say it."""
    try:
        missing = run.missing()
        count = sum(map(len, missing.values()))
        whole = len(run.prompts.prompts) * run.comparison.images
        if run.processes.first:
            others = f", over {run.processes.count} processes" if run.processes.count > 1 else ""
            _say(f"{whole} images in {len(run.comparison.arms)} arms{others}, in {folder}")
        for _ in _bar(run, "drawing", ((1, u) for u in run.draw(missing)), count):
            pass
        for _ in _bar(run, "scoring", ((n, n) for n in run.score()), run.scorings):
            pass
        page = run.finish(command())
    except KeyboardInterrupt:
        typer.echo(
            f"Interrupted: what is finished is in {str(folder)!r}; the same command continues.",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    if page is not None:
        _show(folder)
        _say(f"Report: [bold]{page}[/]")
    run.processes.leave()


def _bar(run: Run, what: str, items: Iterable[tuple[int, Any]], total: int) -> Iterable[Any]:
    """The items, with a progress bar in the first process."""
    if not run.processes.first:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (what, BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        for amount, item in items:
            bar.advance(task, amount)
            yield item


def _show(folder: Path) -> None:
    """The arms as a table."""
    import json

    from rich.table import Table

    from steer.jobs.compare.plot import text_of
    from steer.jobs.compare.results import RESULTS
    from steer.jobs.compare.views import arm_view, digits_of

    found = json.loads((folder / RESULTS).read_bytes())
    table = Table(box=None, header_style="dim")
    table.add_column("arm")
    for reward in found["rewards"]:
        table.add_column(reward["name"] + ("*" if reward["optimised"] else ""), justify="right")
    table.add_column("compute", justify="right")
    for index, arm in enumerate(found["arms"]):
        cells = arm_view(found, index).cells
        shown = [f"{c.mean} ({c.difference})" if c.difference else c.mean for c in cells]
        table.add_row(arm["label"], *shown, f"{arm['cost']['multiple']:.2f}x")
    _say(table)
    base = found["configuration"]["baseline"]
    reward = found["rewards"][-1]["name"]
    pairs = [p for p in found["pairs"] if p["against"] == base and p["reward"] == reward]
    for pair in pairs:
        gap, digits = pair["difference"], digits_of(found, reward)
        scale = found["rewards"][-1]["scale"]
        low, high = gap["low"], gap["high"]
        ends = [text_of(v * scale, digits, True) for v in (low, high) if v is not None]
        span = f" \\[{', '.join(ends)}]" if ends else ""
        _say(
            f"[dim]{reward}:[/] {pair['arm']} over {base} "
            f"{text_of(gap['mean'] * scale, digits, True)}{span}, "
            f"{pair['wins']} won, {pair['ties']} tied, {pair['losses']} lost"
        )


def _plan(comparison: Any, folder: Path) -> str:
    from steer.jobs.compare.arms import check_arm
    from steer.jobs.compare.prompts import load_prompts
    from steer.jobs.compare.scoring import check_judges, reported

    for arm in comparison.arms:
        check_arm(arm)
    prompts = load_prompts(comparison.prompts)
    check_judges(comparison, prompts)
    return (
        f"{len(comparison.arms)} arms x {len(prompts.prompts)} prompts ({prompts.name}) x "
        f"{len(comparison.seeds)} seeds = {len(prompts.prompts) * comparison.images} images, "
        f"scored by {', '.join(reported(comparison))}, into {folder}"
    )


def command() -> str:
    """The command that was given, as a shell takes it."""
    return shlex.join(["steer", *sys.argv[1:]])


def _quiet() -> None:
    """Loading bars of the model libraries would be as many as there are processes."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _say(what: Any) -> None:
    from rich.console import Console

    Console().print(what)
