"""The options of commands that can work on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer


Ray = Annotated[
    str | None,
    typer.Option(
        help="Work on a Ray cluster: auto (the one that runs here), HOST:PORT, or local (all GPUs "
        "of this machine, or its CPU cores). Default: in this process.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="With --ray, how many workers at most. Default: one per GPU, or CPU core.",
        show_default=False,
    ),
]
