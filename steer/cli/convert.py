"""`steer convert`: a reward's weights as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steer.cli.exits import bad_input


Reward = Annotated[
    str,
    typer.Argument(
        help="Whose weights: hpsv2, hpsv2.0 or hpsv2.1, which are checked against their model, or "
        "any, to convert only."
    ),
]
Source = Annotated[Path, typer.Argument(metavar="IN.pt", help="The torch file.")]
Target = Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]


def convert(reward: Reward, source: Source, target: Target, force: Force = False) -> None:
    """Make a safetensors copy of a reward's weights, once.

    Precision is kept; the pickle's tensors are read without running anything in it. Then pass
    the new file as --checkpoint, or as checkpoint= in Python.

    Example: steer convert hpsv2 HPS_v2.1_compressed.pt HPS_v2.1.safetensors
    """
    with bad_input():
        from steer.jobs.convert import convert as write

        made = write(source, target, reward=reward, force=force)
    typer.echo(
        f"{made.path}: {made.tensors} tensors, {made.parameters:,} numbers, "
        f"{', '.join(made.dtypes)}, {made.size_bytes / 2**20:,.1f} MiB\n"
        f"sha256 of {source.name}: {made.sha256}"
    )
