"""`steer compare`: arms side by side, from a YAML file into a folder with tables and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer.cli.exits import INTERRUPTED, bad_input
from steer.cli.spread import Ray, Workers
from steer.cli.terminal import command, escape, progress, say


if TYPE_CHECKING:
    from steer.jobs.compare.config import Comparison
    from steer.jobs.compare.job import CompareJob

RESULTS = "results.json"
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


def compare(
    config: Config,
    out: Out = None,
    check: Check = False,
    ray: Ray = None,
    workers: Workers = None,
) -> None:
    """Compare arms (base, tuned, steered, blended) on the same prompts and noise.

    Writes images, results.json, arms.csv, pairs.csv, scores.csv and report.html. Interrupt it at
    any time: the same command continues. On several GPUs or machines: --ray.

    Example: steer compare examples/compare_shapes.yaml --out results
    """
    with bad_input():
        from steer.jobs.compare import read

        comparison = read(config)
        folder = out or Path(config.stem)
        if check:
            say(escape(_plan(comparison, folder)))
            return
        from steer.jobs.compare.job import CompareJob
        from steer.jobs.spread.cluster import connected

        with connected(ray, workers) as cluster:
            _run(CompareJob(comparison, folder, cluster=cluster), folder)


def _plan(comparison: Comparison, folder: Path) -> str:
    from steer.jobs.compare.job import check
    from steer.jobs.compare.scoring import reported_rewards

    prompts = check(comparison)
    return (
        f"{len(comparison.arms)} arms x {len(prompts.prompts)} prompts ({prompts.name}) x "
        f"{len(comparison.seeds)} seeds = {len(prompts.prompts) * comparison.images} images, "
        f"scored by {', '.join(reported_rewards(comparison))}, into {folder}"
    )


def _run(job: CompareJob, folder: Path) -> None:
    """Draw and score what is missing, with bars, then write and say it."""
    try:
        missing = job.missing()
        count = sum(map(len, missing.values()))
        whole = len(job.prompts.prompts) * job.comparison.images
        say(f"{whole} images in {len(job.comparison.arms)} arms, in {escape(folder)}")
        progress("drawing", (1 for _ in job.draw(missing)), count)
        progress("scoring", job.score(), job.scorings)
        page = job.finish(command())
    except KeyboardInterrupt:
        typer.echo(
            f"Interrupted: what is finished is in {str(folder)!r}; the same command continues.",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    finally:
        job.store.release()
    _show(json.loads((folder / RESULTS).read_bytes()))
    say(f"Report: [bold]{escape(page)}[/]")


def _show(found: Mapping[str, Any]) -> None:
    """The arms as a table, then what each wins against the baseline by the last judge."""
    from rich.table import Table

    from steer.jobs.compare.panels import arm_view

    table = Table(box=None, header_style="dim")
    table.add_column("arm")
    for reward in found["rewards"]:
        table.add_column(
            escape(reward["name"]) + ("*" if reward["optimised"] else ""), justify="right"
        )
    table.add_column("compute", justify="right")
    for index, arm in enumerate(found["arms"]):
        cells = arm_view(found, index).cells
        shown = [f"{c.mean} ({c.difference})" if c.difference else c.mean for c in cells]
        table.add_row(escape(arm["label"]), *map(escape, shown), f"{arm['cost']['multiple']:.2f}x")
    say(table)
    base, reward = found["configuration"]["baseline"], found["rewards"][-1]["name"]
    for pair in found["pairs"]:
        if pair["against"] == base and pair["reward"] == reward:
            say(_pair_line(found, pair))


def _pair_line(found: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    """An arm's paired difference, its interval, and the prompts won, tied and lost."""
    from steer.jobs.compare.findings import digits_of, scale_in
    from steer.jobs.compare.plot import text_of

    reward, gap = pair["reward"], pair["difference"]
    digits, scale = digits_of(found, reward), scale_in(found, reward)
    ends = [text_of(v * scale, digits, True) for v in (gap["low"], gap["high"]) if v is not None]
    span = f" \\[{', '.join(ends)}]" if ends else ""
    return (
        f"[dim]{escape(reward)}:[/] {pair['arm']} over {pair['against']} "
        f"{text_of(gap['mean'] * scale, digits, True)}{span}, "
        f"{pair['wins']} won, {pair['ties']} tied, {pair['losses']} lost"
    )
