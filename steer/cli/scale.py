"""`steer scale`: plain images of every prompt, scored, and the scales that `--scale` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from steer.cli.exits import bad_input
from steer.cli.sample import (
    Device,
    Dtype,
    Further,
    GuidanceScale,
    Pipeline,
    Reward,
    Seed,
    Steps,
    read_prompts,
)
from steer.cli.terminal import escape, say


PromptsFile = Annotated[
    Path,
    typer.Argument(
        help="The prompts that will be searched: text with one per line ('-' is stdin), .json, "
        ".jsonl, .csv or .tsv.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write, a .json.")]
Each = Annotated[int, typer.Option(help="Plain images of every prompt.")]
Unit = Annotated[
    str, typer.Option(help="z: spreads above the prompt's mean; percentile: from 0 to 1.")
]
Unknown = Annotated[
    str,
    typer.Option(
        help="What other prompts get: an error (raise), or what is expected of any (global)."
    ),
]


def scale(
    prompts_file: PromptsFile,
    out: Out = Path("scales.json"),
    pipeline: Pipeline = "shapes",
    reward: Reward = "shapes",
    each: Each = 8,
    unit: Unit = "z",
    unknown: Unknown = "raise",
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    call: Further = None,
) -> None:
    """Measure how a reward spreads over each prompt's plain images.

    Writes a file for --scale, and for `scale:` of steer compare: scores are then in spreads of
    their own prompt, so that rewards and prompts compare.

    Example: steer scale prompts.txt --reward hpsv2=1,imagereward=1 --steps 30 --out scales.json
    """
    with bad_input():
        from steer.jobs.call import read_call
        from steer.jobs.scale_job import ScaleJob, fit_scale

        if out.suffix.lower() != ".json" or out.is_dir() or not out.parent.is_dir():
            raise ValueError(f"--out {str(out)!r}: name a .json file in a folder that is there")
        choices: dict[str, Any] = {"unit": unit, "unknown": unknown}
        job = ScaleJob(
            tuple(read_prompts(prompts_file, "prompts file")),
            pipeline=pipeline,
            reward=reward,
            each=each,
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            device=device,
            dtype=dtype,
            call=read_call(call or ()),
            **choices,
        )
        say(f"[dim]{len(job.prompts)} prompts x {each} plain images for {escape(reward)}[/]")
        for own in fit_scale(job, out):
            law = own.others
            say(f"{escape(own.reward)}: mean {law.centre:.4g}, spread {law.sd:.4g} by prompt")
    say(f"Scales: [bold]{escape(out)}[/]")
