"""`steer tune data`: a preference set from a settings file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from steer.cli.exits import INTERRUPTED, bad_input
from steer.cli.spread import Ray, Workers
from steer.cli.terminal import escape


def data(
    config: Annotated[Path, typer.Argument(help="Settings in YAML; see docs/tune-data.md.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder, instead of the file's `out`.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ..., instead of the file's.")
    ] = None,
    ray: Ray = None,
    workers: Workers = None,
) -> None:
    """Sample, score and pair a set of images to tune on.

    Writes latents, text features and tables, shard by shard.
    Interrupt it at any time: the same command continues.

    Example: steer tune data examples/tune_shapes_data.yaml
    """
    with bad_input():
        from steer.tune.data.config import DataConfig

        given = {"out": None if out is None else str(out), "device": device}
        job = DataConfig.load(config, **given)
        from steer.jobs.spread.cluster import connected
        from steer.tune.data.make import make

        try:
            with connected(ray, workers) as cluster:
                folder = make(job, progress=True, cluster=cluster)
        except KeyboardInterrupt:
            typer.echo(f"Interrupted: finished shards are in {job.out}; the same command continues")
            raise typer.Exit(INTERRUPTED) from None
    _show(folder)


def _show(folder: Path) -> None:
    """What came of it, in a few lines."""
    from rich.console import Console

    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    parts = [f"{found['count']} images of {found['prompts']} prompts"]
    if found["kind"] == "pairs":
        parts.append(f"{found['pairs']} pairs")
    left = {k: n for k, n in found.get("left_out", {}).items() if n}
    console = Console()
    console.print(f"{'; '.join(parts)}: [bold]{escape(folder)}[/]")
    if left:
        console.print("Left out: " + ", ".join(f"{n} {k}" for k, n in left.items()))
