"""`python -m steer.cli.demo`: the bundled world, plain and guided, on captions it never saw."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer.cli.exits import end_as_interrupted
from steer.cli.terminal import escape
from steer.core.files.names import visible


if TYPE_CHECKING:
    from PIL import Image

    from steer.core.files.run_folder import RunFolder

GRID_FILE = "grid.png"
KIND = "demo"
PROGRAM = "python -m steer.cli.demo"
GUIDANCE = 3.5


def demo(out: Path, captions: int = 8, compute: float = 8.0, seed: int = 0) -> RunFolder:
    """Draw held-out captions plain and guided into `out`: run.json, report.html and grid.png.

    Raises:
        SteerError: The world's weights are not there, or `out` cannot be written.
        ValueError: `captions` or `compute` is below 1.
    """
    from steer.core.files.atomic import usable
    from steer.core.files.run_folder import IMAGES, RunFolder
    from steer.jobs.sample_job import SampleJob
    from steer.jobs.sampling import Sampler, draw_missing
    from steer.pipeline.report.page import write_report
    from steer.shapes import prompts as shape_prompts

    if captions < 1:
        raise ValueError(f"captions={captions}: give at least 1")
    prompts = tuple(shape_prompts(split="held_out", count=captions, seed=seed))
    job = SampleJob(prompts, compute=compute, seed=seed, guidance_scale=GUIDANCE)
    usable(out)
    _check_kind(out)
    sampler = Sampler(job)
    words = f"--out {out} --captions {captions} --compute {compute:g} --seed {seed}"
    run = RunFolder.create(out, job.to_dict(), kind=KIND, command=f"{PROGRAM} {words}")
    shutil.rmtree(out / IMAGES, ignore_errors=True)
    for _ in draw_missing(run, sampler):
        pass
    write_report(run)
    write_grid(run)
    run.close("finished")
    return run


def _check_kind(out: Path) -> None:
    """Raise RecordError where the demo would replace something else's files."""
    from steer.core.errors import RecordError
    from steer.core.files.folder import check_free
    from steer.core.files.run_folder import RUN_FILE, RunFolder, check_own

    if not (out / RUN_FILE).exists():
        check_own(out)
        check_free(out, [GRID_FILE], "the demo")
    elif (kind := RunFolder.load(out).data.get("kind")) != KIND:
        raise RecordError(f"--out {str(out)!r}: holds a run of {kind!r}; name another folder")


def write_grid(run: RunFolder) -> Path:
    """Put `grid.png` into the run's folder: captions as columns, plain above guided."""
    import io

    from PIL import Image

    from steer.core.files.atomic import write_atomic
    from steer.pipeline.report.grid import Column, grid

    def load(name: str) -> Image.Image:
        with Image.open(run.folder / name) as image:
            return image.convert("RGB")

    columns = []
    for entry in (e for e in run.entries if e.get("base")):
        base, verdicts = entry["base"], entry.get("verdicts")
        columns.append(
            Column(
                entry["prompt"],
                (load(base["image"]), load(entry["images"][0])),
                (_met(base.get("verdict")), _met(verdicts[0] if verdicts else None)),
            )
        )
    path, buffer = run.folder / GRID_FILE, io.BytesIO()
    grid(columns, rows=("plain", "guided")).save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
    return path


def _met(verdict: dict[str, object] | None) -> bool | None:
    return None if verdict is None else bool(verdict["all_met"])


def main(
    out: Annotated[Path, typer.Option(help="Folder for report.html and grid.png.")] = Path("demo"),
    captions: Annotated[int, typer.Option(help="How many held-out captions.")] = 8,
    compute: Annotated[float, typer.Option(help="Plain calls' worth of denoising each.")] = 8.0,
    seed: Annotated[int, typer.Option(help="Of captions and noise.")] = 0,
) -> None:
    """Draw captions the bundled world never trained on, plain and guided, and compare."""
    from rich.console import Console

    from steer.cli.exits import BAD_INPUT, INTERRUPTED
    from steer.cli.summary import summary
    from steer.core.errors import SteerError
    from steer.pipeline.report.page import run_view

    start, console = time.perf_counter(), Console()
    try:
        run = demo(out, captions, compute, seed)
    except (SteerError, ValueError, OSError) as error:
        typer.echo(f"steer.demo: {visible(' '.join(str(error).split()))}", err=True)
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    console.print(summary(run_view(run)))
    console.print(
        f"\n{time.perf_counter() - start:.0f} s in all. "
        f"Look at [bold]{escape(out / 'report.html')}[/] and [bold]{escape(out / GRID_FILE)}[/]."
    )


def run_main(arguments: Sequence[str] | None = None) -> None:
    """The program: `main` with `arguments`, or with the command line's."""
    end_as_interrupted()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(args=None if arguments is None else list(arguments), prog_name=PROGRAM)


if __name__ == "__main__":
    run_main(sys.argv[1:])
