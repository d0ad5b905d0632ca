"""`steer score`: image files through rewards, into a table, a CSV or JSON file and a sheet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer.cli.exits import FAILED, INTERRUPTED, bad_input
from steer.cli.spread import Ray, Workers
from steer.cli.terminal import escape, progress, say
from steer.core.files.names import visible


if TYPE_CHECKING:
    from steer.core.files.score_log import Row
    from steer.jobs.score_job import ScoreJob
    from steer.jobs.spread.cluster import Cluster

Paths = Annotated[
    list[Path], typer.Argument(help="Image files, and folders with images at any depth.")
]
Rewards = Annotated[
    list[str],
    typer.Option("--reward", "-r", help="As for `steer sample`; may be repeated, the first sorts."),
]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="One prompt for all images.", show_default=False),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        help="Prompts by file name (.json, .jsonl, .csv, .tsv), or one per line in the images' "
        "sorted order (other suffixes; '-' is stdin).",
        show_default=False,
    ),
]
Csv = Annotated[Path | None, typer.Option(help="Write a row per image.", show_default=False)]
Json = Annotated[Path | None, typer.Option(help="The same as JSON.", show_default=False)]
Sheet = Annotated[
    Path | None,
    typer.Option(help="Write a contact sheet (.png), best image first.", show_default=False),
]
Checkpoint = Annotated[
    list[str] | None,
    typer.Option(help="Local weights, as REWARD=PATH; may be repeated.", show_default=False),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str, typer.Option(help="float32, float16 or bfloat16; auto is each reward's own.")
]
Scale = Annotated[
    str | None,
    typer.Option(
        help="Put all rewards on the scale of their prompts' plain images: a scales.json that "
        "`steer scale` wrote.",
        show_default=False,
    ),
]
ImagesPerBatch = Annotated[
    int | None,
    typer.Option(
        help="Images scored at once. Default: 32, or what a reward chooses.", show_default=False
    ),
]


def score(
    paths: Paths,
    reward: Rewards,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    csv: Csv = None,
    json: Json = None,
    sheet: Sheet = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    images_per_batch: ImagesPerBatch = None,
    scale: Scale = None,
    ray: Ray = None,
    workers: Workers = None,
) -> None:
    """Score image files with one or more rewards, and show them best first.

    PNG files from `steer sample` bring their prompts along; others need --prompt or
    --prompts-file. Scores are kept in a .scores.jsonl file as they come, beside --csv or --json
    (else scores.jsonl): the same command again scores only what is new.

    Example: steer score renders --prompt "a red circle" --reward hpsv2 --csv scores.csv
    """
    outputs = {"--csv": csv, "--json": json, "--sheet": sheet}
    with bad_input():
        from steer.core.files.score_log import log_path
        from steer.jobs.score_job import make_score_job
        from steer.jobs.spread.cluster import connected

        _check_outputs(outputs)
        job = make_score_job(
            paths,
            reward,
            log=log_path(csv, json),
            prompt=prompt,
            prompts_file=prompts_file,
            checkpoints=checkpoint or (),
            leave_out=[sheet] if sheet else [],
            device=device,
            dtype=dtype,
            images_per_batch=images_per_batch,
            scale=scale,
        )
        with connected(ray, workers) as cluster:
            stopped = _score_missing(job, cluster)
        rows = job.rows()
        _write(rows, job, outputs)
    _show(rows, job, outputs, stopped)
    raise typer.Exit(INTERRUPTED if stopped else FAILED if job.failed else 0)


def _check_outputs(outputs: Mapping[str, Path | None]) -> None:
    """See that the outputs can be written, before any work; else ValueError."""
    for flag, file in outputs.items():
        suffix = ".png" if flag == "--sheet" else "." + flag.lstrip("-")
        if file is None:
            continue
        if file.suffix.lower() != suffix or file.is_dir():
            raise ValueError(f"{flag} {str(file)!r}: name a file that ends in {suffix}")
        if not file.parent.is_dir():
            raise ValueError(f"{flag} {str(file)!r}: there is no folder {str(file.parent)!r}")


def _score_missing(job: ScoreJob, cluster: Cluster | None) -> bool:
    """Score what is missing; whether the user stopped it."""
    missing = job.missing()
    readable = sum(image.error is None for image in job.images)
    if job.unused:
        say(f"[dim]{job.unused} prompts of the file belong to none of these images.[/]")
    if readable > len(missing):
        say(f"{readable - len(missing)} of {readable} images are scored already.")
    if not missing:
        return False
    say(f"[dim]Loading {escape(', '.join(job.rewards))}[/]")
    from steer.jobs.scoring import Scorer, ScoreSettings, batches_of, score_missing
    from steer.jobs.spread.crew import crew

    make, units = partial(Scorer, ScoreSettings.of(job)), len(batches_of(job))
    try:
        with crew(make, cluster, device=job.device, units=units) as scorers:
            progress("scoring", score_missing(job, scorers), len(missing))
    except KeyboardInterrupt:
        return True
    return False


def _write(rows: list[Row], job: ScoreJob, outputs: Mapping[str, Path | None]) -> None:
    """The files asked for, from what is scored so far; none where nothing is."""
    from steer.core.files.score_log import write_csv, write_json_rows

    csv, json, sheet = outputs.values()
    if rows and csv:
        write_csv(csv, rows, job.rewards)
    if rows and json:
        write_json_rows(json, rows, job.rewards)
    if rows and sheet:
        from steer.core.files.png import save_png
        from steer.pipeline.report.sheet import score_sheet

        save_png(sheet, score_sheet(rows, job.rewards), {})


def _show(
    rows: list[Row], job: ScoreJob, outputs: Mapping[str, Path | None], stopped: bool
) -> None:
    """The table, what could not be scored, and where the files are."""
    from steer.cli.score_table import ranking

    if rows:
        say(ranking(rows, job.rewards))
        for flag, file in outputs.items():
            if file:
                say(f"{flag.lstrip('-')}: [bold]{escape(file)}[/]")
    for path, why in job.failed.items():
        typer.echo(f"steer: {visible(path)}: {visible(why)}", err=True)
    if job.failed:
        count = f"{len(job.failed)} of {len(job.images)} images"
        typer.echo(f"steer: {count} could not be scored", err=True)
    if stopped:
        say(
            f"Interrupted: {len(rows)} of {len(job.images)} images are scored, in "
            f"[bold]{escape(job.log.path)}[/]; the same command continues with the rest."
        )
