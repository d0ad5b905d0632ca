"""`steer tune run`: scored samples into a tuned checkpoint; and the commands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from steer.cli.exits import FAILED, INTERRUPTED, bad_input
from steer.cli.tune_data import data
from steer.cli.tune_scorer import scorer


tune = typer.Typer(
    no_args_is_help=True,
    help="Make tuned checkpoints: data makes what run trains on; scorer makes a reward.",
)


@tune.command()
def run(
    config: Annotated[Path, typer.Argument(help="Settings in YAML; see docs/tune.md.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder, instead of the file's `out`.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder, instead of the file's `data`.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a LoRA, or the whole denoiser: TGO, DPO, KTO, NFT, DRaFT, DDPO and others.

    On a dataset, in rounds that draw their own samples, or on sampling runs.

    Interrupt it at any time: the same command continues exactly.

    Example: steer tune run examples/tune_shapes.yaml
    """
    given = {"out": out, "data": data}
    with bad_input():
        from steer.tune.config import TuneConfig

        job = TuneConfig.load(config, **{k: str(v) for k, v in given.items() if v is not None})
        folder = _train(job, not quiet)
    typer.echo(f"Tuned weights: {folder}")
    typer.echo(f"Use them: steer.guided(pipe, reward=..., tuned={str(folder)!r})")


def _train(job: Any, progress: bool) -> Path:
    """Train; an interruption and a loss that is not finite end the command as they should."""
    from steer.core.errors import NonFiniteError
    from steer.tune.interrupts import Stopped
    from steer.tune.run import tune as train

    try:
        return train(job, progress=progress)
    except Stopped as stop:
        typer.echo(f"Interrupted after step {stop.step}: the same command continues")
        raise typer.Exit(INTERRUPTED) from None
    except NonFiniteError as error:
        typer.echo(f"steer: {error}", err=True)
        raise typer.Exit(FAILED) from error


tune.command()(data)
tune.command()(scorer)
