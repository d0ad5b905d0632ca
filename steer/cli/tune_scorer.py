"""`steer tune scorer`: a preference scorer from a settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steer.cli.exits import FAILED, INTERRUPTED, bad_input


def scorer(
    config: Annotated[Path, typer.Argument(help="Settings in YAML; see docs/tune-scorer.md.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder, instead of the file's `out`.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ..., instead of the file's.")
    ] = None,
) -> None:
    """Fine-tune an open_clip model into a preference scorer, from pairs and choices.

    Writes a model folder that the reward clip:local-dir:FOLDER loads, and its accuracy.
    Interrupt it at any time: the same command continues from the last checkpoint.

    Example: steer tune scorer examples/tune_shapes_scorer.yaml
    """
    with bad_input():
        from steer.tune.scorer.config import ScorerConfig

        job = ScorerConfig.load(config, out=None if out is None else str(out), device=device)
        from steer.core.errors import NonFiniteError
        from steer.tune.scorer.accuracy import Accuracy
        from steer.tune.scorer.fit import fit

        try:
            result = fit(job, progress=True)
        except KeyboardInterrupt:
            typer.echo(f"Interrupted: its checkpoint is in {job.out}; the same command continues")
            raise typer.Exit(INTERRUPTED) from None
        except NonFiniteError as error:
            typer.echo(f"steer: {error}", err=True)
            raise typer.Exit(FAILED) from None
    typer.echo(f"Held-out accuracy before: {Accuracy(**result['accuracy_before'])}")
    typer.echo(f"Held-out accuracy now:    {Accuracy(**result['accuracy'])}")
    typer.echo(f"Use it: --reward {result['reward']}")
