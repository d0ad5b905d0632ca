"""`steer app`: a page to draw on, over one loaded pipeline."""

from __future__ import annotations

from typing import Annotated

import typer

from steer.cli.exits import bad_input
from steer.cli.sample import Device, Dtype, Judges, Pipeline
from steer.cli.terminal import escape, say


Rewards = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        help="What the page may choose among; may be repeated. Default: shapes.",
        show_default=False,
    ),
]
Host = Annotated[str, typer.Option(help="Where to listen; others than this machine are warned of.")]
Port = Annotated[int, typer.Option(help="0 is a free one.")]


def studio(
    pipeline: Pipeline = "shapes",
    reward: Rewards = None,
    judge: Judges = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Open a page to draw on in the browser: prompt, compute, and pictures as they come.

    Pipeline, rewards and judges are those named here; the page chooses among them. Results are
    deleted when it ends.

    Example: steer app --pipeline stabilityai/stable-diffusion-xl-base-1.0 --reward hpsv2
    --judge auto
    """
    with bad_input():
        from steer.core.checks import require_extra

        require_extra("app", "gradio", "fastapi", "uvicorn")
        from steer.jobs.studio.process import open_studio

        say(f"[dim]Loading {escape(pipeline)}[/]")
        open_studio(
            host=host,
            port=port,
            tell=lambda url: say(f"The page is at [bold]{escape(url)}[/], until Ctrl-C"),
            pipeline=pipeline,
            rewards=tuple(reward or ("shapes",)),
            judges=tuple(judge or ()),
            device=device,
            dtype=dtype,
        )
