"""The command `steer`: its subcommands, and the short ones themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steer.cli.calibrate import calibrate
from steer.cli.compare import compare
from steer.cli.convert import convert
from steer.cli.exits import bad_input, end_as_interrupted
from steer.cli.sample import sample
from steer.cli.scale import scale
from steer.cli.score import score
from steer.cli.serve import serve
from steer.cli.studio import studio
from steer.cli.tune import tune
from steer.cli.tuned import tuned


_ARGUMENT = {
    "http:*": "://<host>:<port>",
    "https:*": "://<host>",
    "openai:*": ":<model>@<url>",
}
"""What follows the name of a reward in another process."""

app = typer.Typer(
    name="steer",
    help="Better images from diffusers pipelines, for a little extra compute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Better images from diffusers pipelines, for a little extra compute."""
    end_as_interrupted()
    if version:
        from steer.core.files.versions import versions

        typer.echo(versions()["steer"])
        raise typer.Exit


app.command()(sample)
app.command()(calibrate)
app.command()(scale)
app.command()(score)
app.command()(convert)
app.command()(serve)
app.command("app")(studio)
app.command()(tuned)
app.add_typer(tune, name="tune")
app.command()(compare)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `steer sample --out` wrote.")],
) -> None:
    """Build report.html again from a run's files."""
    with bad_input():
        from steer.core.files.run_folder import RunFolder
        from steer.pipeline.report.page import write_report

        path = write_report(RunFolder.load(folder))
    typer.echo(path)


@app.command("env")
def environment() -> None:
    """Print versions and devices, for a report of a fault."""
    from steer.core.files.environment import environment as look

    for name, value in look().items():
        typer.echo(f"{name}: {value}")


@app.command()
def rewards() -> None:
    """List the rewards that --reward and --judge know by name."""
    with bad_input():
        from steer.rewards import available_rewards

        for name in available_rewards():
            typer.echo(name.replace(":*", _ARGUMENT.get(name, ":<model>[:<pretrained>]")))


if __name__ == "__main__":
    app()
