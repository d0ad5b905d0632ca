"""`steer calibrate`: pilot runs into a folder, and the plans that `--plans` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer.cli.exits import bad_input
from steer.cli.sample import (
    Device,
    Dtype,
    Further,
    GuidanceScale,
    LaneWidth,
    Pipeline,
    Reward,
    Scale,
    Seed,
    Steps,
    read_prompts,
)
from steer.cli.terminal import escape, say


if TYPE_CHECKING:
    from steer.jobs.calibrate_job import CalibrateJob

PromptsFile = Annotated[
    Path,
    typer.Argument(
        help="Prompts like those to come, some 32: text with one per line ('-' is stdin), .json, "
        ".jsonl, .csv or .tsv.",
        show_default=False,
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for plans.json, plans.html, pilots.jsonl.")
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="A held-out reward that chooses the plans. Default: the reward itself.",
        show_default=False,
    ),
]
Particles = Annotated[
    int, typer.Option("--n", help="Particles per prompt; no plan starts with more.")
]
Windows = Annotated[
    list[str] | None,
    typer.Option(
        "--window",
        help="Look at guidance by the reward's gradient between two fractions of the steps: "
        "0.5-0.95. Repeat it for several. Needs a reward with a gradient; give a judge.",
        show_default=False,
    ),
]
Previews = Annotated[
    list[str] | None,
    typer.Option(
        "--preview",
        help="Look at a cheaper decoder of previews beside the pipeline's own: tiny, linear, or "
        "an AutoencoderTiny. Repeat it for several.",
        show_default=False,
    ),
]


def calibrate(
    prompts_file: PromptsFile,
    out: Out = Path("steer-plans"),
    pipeline: Pipeline = "shapes",
    reward: Reward = "shapes",
    judge: Judge = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    n: Particles = 16,
    window: Windows = None,
    preview: Previews = None,
    seed: Seed = 0,
    lane_width: LaneWidth = None,
    scale: Scale = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    call: Further = None,
) -> None:
    """Learn from pilot runs what --compute is best spent on.

    Writes plans.json, for `steer.guided(..., plans="plans.json")`, and a page with the curves.
    Says what it will cost before it begins; interrupt it at any time: the same command continues.

    Example: steer calibrate prompts.txt --reward hpsv2 --judge cyclereward --steps 30 --out plans
    """
    with bad_input():
        from steer.core.files.atomic import usable
        from steer.core.files.folder import held
        from steer.jobs.calibrate_job import CalibrateJob, check_folder
        from steer.jobs.call import read_call

        job = CalibrateJob(
            tuple(read_prompts(prompts_file, "prompts file")),
            pipeline=pipeline,
            reward=reward,
            judge=judge,
            steps=steps,
            guidance_scale=guidance_scale,
            n=n,
            windows=tuple(_window(text) for text in window or ()),
            previews=tuple(preview or ()),
            seed=seed,
            call=read_call(call or ()),
            device=device,
            dtype=dtype,
            lane_width=lane_width,
            scale=scale,
        )
        usable(out)
        check_folder(out)
        with held(out):
            _calibrate(job, out)


def _window(text: str) -> tuple[float, float]:
    """Two fractions of the steps; ValueError for something else."""
    try:
        first, last = map(float, text.split("-"))
    except ValueError as error:
        raise ValueError(f"--window {text}: two fractions of the steps, as in 0.5-0.95") from error
    return first, last


def _calibrate(job: CalibrateJob, out: Path) -> None:
    """Run it, and show what came of it."""
    from steer.jobs.calibrate_job import PAGE, PLANS, run_calibration

    say(f"[dim]Loading {escape(job.pipeline)} and the reward {escape(job.reward)}[/]")
    plans = run_calibration(job, out, lambda line: say(escape(line)))
    say(escape(str(plans)))
    say(f"Plans: [bold]{escape(out / PLANS)}[/]  Page: [bold]{escape(out / PAGE)}[/]")
