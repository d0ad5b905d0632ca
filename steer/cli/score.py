"""`steer score`: image files through rewards, into a table, a CSV or JSON file and a sheet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer.cli.exits import FAILED, INTERRUPTED, bad_input


if TYPE_CHECKING:
    from steer.core.files.score_log import Row
    from steer.jobs.score_job import ScoreJob

Paths = Annotated[
    list[Path], typer.Argument(help="Image files, and folders with images at any depth.")
]
Reward = Annotated[
    str, typer.Option("--reward", "-r", help="Names with commas between: 'hpsv2,pickscore'.")
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
Batch = Annotated[
    int | None,
    typer.Option(
        help="Images scored at once. Default: 32, or what a reward chooses.", show_default=False
    ),
]


def score(
    paths: Paths,
    reward: Reward,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    csv: Csv = None,
    json: Json = None,
    sheet: Sheet = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch: Batch = None,
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
        from steer.jobs.score_job import make_job

        _check(outputs, batch)
        job = make_job(
            paths,
            reward,
            log=log_path(csv, json),
            prompt=prompt,
            prompts_file=prompts_file,
            checkpoints=checkpoint or (),
            dtype=dtype,
            leave_out=[sheet] if sheet else [],
        )
        stopped = _run(job, device, batch)
        rows = job.rows()
        _write(rows, job, outputs)
    _show(rows, job, outputs, stopped)
    raise typer.Exit(INTERRUPTED if stopped else FAILED if job.failed else 0)


def _check(outputs: Mapping[str, Path | None], batch: int | None) -> None:
    """See that the outputs can be written, before any work; else ValueError."""
    if batch is not None and batch < 1:
        raise ValueError(f"--batch {batch}: score at least one image at a time")
    for flag, file in outputs.items():
        suffix = ".png" if flag == "--sheet" else "." + flag.lstrip("-")
        if file is None:
            continue
        if file.suffix.lower() != suffix or file.is_dir():
            raise ValueError(f"{flag} {str(file)!r}: name a file that ends in {suffix}")
        if not file.parent.is_dir():
            raise ValueError(f"{flag} {str(file)!r}: there is no folder {str(file.parent)!r}")


def _run(job: ScoreJob, device: str, batch: int | None) -> bool:
    """Score what is missing; whether the user stopped it."""
    from steer.jobs.prompts import without_prompt

    lost, lacking = without_prompt(job.images, job.prompts), job.lacking()
    readable = sum(image.error is None for image in job.images)
    if job.unused:
        _say(f"[dim]{job.unused} prompts of the file belong to none of these images.[/]")
    if readable > len(lacking):
        _say(f"{readable - len(lacking)} of {readable} images are scored already.")
    if not lacking:
        return False
    _say(f"[dim]Loading {', '.join(job.rewards)}[/]")
    from steer.jobs.scoring import load_rewards

    needed = [name for name in job.rewards if any(name in names for names in lacking.values())]
    rewards = load_rewards(needed, job.checkpoints, device, job.dtype, batch)
    asking = [name for name, reward in rewards.items() if reward.needs_prompt]
    if lost is not None and asking:
        raise ValueError(f"{', '.join(asking)}: {lost}")
    return _score(job, lacking, rewards, batch or 32, device)


def _score(
    job: ScoreJob,
    lacking: Mapping[int, tuple[str, ...]],
    rewards: Mapping[str, Any],
    batch: int,
    device: str,
) -> bool:
    """Score the images that lack something, each batch into the log at once."""
    import torch

    from steer.jobs.scoring import Task, score_all

    tasks: dict[Task, int] = {}
    for index, names in lacking.items():
        image = job.images[index]
        tasks[Task(image.path, image.size or (0, 0), job.prompts[index] or "", names)] = index
    bar = _progress()
    try:
        with job.log.appending(), bar:
            shown = bar.add_task("", total=len(tasks))
            for done in score_all(tasks, rewards, batch=batch, device=device):
                job.log.add({job.key(tasks[t], name): s for (t, name), s in done.scores.items()})
                job.failed.update({task.path: why for task, why in done.failed.items()})
                bar.advance(shown, len(done.tasks))
    except KeyboardInterrupt:
        return True
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"--batch {batch}: out of memory; what is scored is kept, continue with a smaller one"
        ) from error
    return False


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("scoring", BarColumn(), MofNCompleteColumn(), "images", TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


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
    from rich.markup import escape

    from steer.pipeline.report.ranking import ranking

    if rows:
        _say(ranking(rows, job.rewards))
        for flag, file in outputs.items():
            if file:
                _say(f"{flag.lstrip('-')}: [bold]{escape(str(file))}[/]")
    for path, why in job.failed.items():
        typer.echo(f"steer: {path}: {why}", err=True)
    if job.failed:
        count = f"{len(job.failed)} of {len(job.images)} images"
        typer.echo(f"steer: {count} could not be scored", err=True)
    if stopped:
        _say(
            f"Interrupted: {len(rows)} of {len(job.images)} images are scored, in "
            f"[bold]{escape(str(job.log.path))}[/]; the same command continues with the rest."
        )


def _say(what: Any) -> None:
    from rich.console import Console

    Console().print(what)
