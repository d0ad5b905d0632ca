"""The command `steer`: sample with a reward, score images, rebuild reports."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer.cli.compare import compare
from steer.cli.convert import convert
from steer.cli.exits import INTERRUPTED, bad_input, fail
from steer.cli.score import score
from steer.cli.tune import tune
from steer.cli.tuned import tuned


if TYPE_CHECKING:
    from steer.core.files.record import Run
    from steer.jobs.job import Job

app = typer.Typer(
    name="steer",
    help="Better images from diffusers pipelines, for a little extra compute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Prompts = Annotated[
    list[str] | None, typer.Argument(help="What to draw; one or more.", show_default=False)
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(help="Further prompts, one per line; '-' is stdin.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for images, run.json, report.html.")]
Pipeline = Annotated[str, typer.Option(help="'shapes' (bundled, offline), a folder, or a hub id.")]
Reward = Annotated[
    str, typer.Option(help="A name (see `steer rewards`), 'a=0.7,b=0.3', or 'rank(a,b)'.")
]
Compute = Annotated[
    float | None,
    typer.Option(
        help="How many plain calls' worth of denoising to spend per image. Default: 4.",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="A name (best-of-n, smc, tree, ...), sized by --compute; written out: "
        "'Prune(start=8, keep=(4, 2), at=(0.25, 0.5))'; or a .yaml file. "
        "Default: chosen from --compute.",
        show_default=False,
    ),
]
MethodArgs = Annotated[
    str | None,
    typer.Option(help="Arguments of --method: 'n=8, lam=2.0, when=every(4)'.", show_default=False),
]
Judge = Annotated[
    str | None, typer.Option(help="A reward to report but not optimise.", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Prompt k is drawn with seed + k.")]
Steps = Annotated[
    int | None, typer.Option(help="Denoising steps. Default: the pipeline's.", show_default=False)
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="Classifier-free guidance. Default: the pipeline's.", show_default=False),
]
ImagesPerPrompt = Annotated[int, typer.Option(help="Winners to keep per prompt.")]
Width = Annotated[
    int | None,
    typer.Option(help="Latents per denoiser call. Default: set by steer.", show_default=False),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Tuned = Annotated[
    str | None,
    typer.Option(
        help="A tuned checkpoint: a name of `steer tuned`, a hub id, a path.", show_default=False
    ),
]
Blend = Annotated[
    str | None,
    typer.Option(
        help="How tuned and untuned combine: 'RLG(2.0)', 'SwitchAt(0.5)', ...", show_default=False
    ),
]
Base = Annotated[bool, typer.Option(help="Also draw the plain call's image, to compare with.")]


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Better images from diffusers pipelines, for a little extra compute."""
    if version:
        from steer.core.files.versions import versions

        typer.echo(versions()["steer"])
        raise typer.Exit


@app.command()
def sample(
    prompts: Prompts = None,
    out: Out = Path("steer-out"),
    pipeline: Pipeline = "shapes",
    reward: Reward = "shapes",
    compute: Compute = None,
    method: Method = None,
    method_args: MethodArgs = None,
    judge: Judge = None,
    prompts_file: PromptsFile = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    images_per_prompt: ImagesPerPrompt = 1,
    width: Width = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    base: Base = True,
    tuned: Tuned = None,
    blend: Blend = None,
) -> None:
    """Draw prompts with a pipeline, steered by a reward.

    Writes PNG images that carry their reproduction data, run.json and report.html.
    Interrupt it at any time: finished images stay, and the same command continues.

    Example: steer sample "a red circle left of a blue square" --compute 4 --out results
    """
    apart = ("prompts", "out", "prompts_file", "method_args")
    options = {k: v for k, v in locals().items() if k not in (*apart, "apart")}
    with bad_input():
        from steer.methods.text import method_option

        options["method"] = method_option(method, method_args)
        texts = (*(prompts or ()), *_lines(prompts_file))
        if not texts:
            raise ValueError('no prompts: write steer sample "a red circle", or use --prompts-file')
        run = _known_run(out)
        from steer.jobs.job import Job

        job = Job(texts, **options)
    _sample(job, out, run)


app.command()(score)
app.command()(convert)
app.command()(tuned)
app.add_typer(tune, name="tune")
app.command()(compare)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `steer sample --out` wrote.")],
) -> None:
    """Build report.html again from a run's files."""
    with bad_input():
        from steer.core.files.record import Run
        from steer.pipeline.report.page import write_report

        path = write_report(Run.load(folder))
    typer.echo(path)


@app.command()
def rewards() -> None:
    """List the rewards that --reward and --judge know by name."""
    with bad_input():
        from steer.rewards import available_rewards

        for name in available_rewards():
            typer.echo(name.replace(":*", ":<model>[:<pretrained>]"))


def _lines(path: Path | None) -> list[str]:
    """The non-empty lines of a prompts file."""
    if path is None:
        return []
    text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _known_run(out: Path) -> Run | None:
    """The run that is in the folder already, after seeing that the folder can be used."""
    from steer.core.files.atomic import usable
    from steer.core.files.record import RUN_FILE, Run

    usable(out)
    return Run.load(out) if (out / RUN_FILE).exists() else None


def _sample(job: Job, out: Path, run: Run | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    with bad_input():
        from steer.core.files.record import Run

        arguments = job.to_dict()
        if run is not None and run.entries:
            run.check(arguments)
            if not run.missing() and run.status == "finished":
                console.print(f"Finished before: nothing to do in [bold]{out}[/].")
                return
        from steer.jobs.sampling import Sampler

        console.print(f"[dim]Loading {escape(job.pipeline)} and the reward {escape(job.reward)}[/]")
        sampler = Sampler(job)
        if run is None or not run.entries:
            run = Run.create(out, arguments, kind="sample", command=_command())
    _draw(run, sampler, console)


def _draw(run: Run, sampler: Any, console: Any) -> None:
    """Draw what is missing, then show what came of it; an interrupt leaves what is finished."""
    from steer.core.errors import SteerError
    from steer.jobs.sampling import draw_all
    from steer.pipeline.report.page import write_report
    from steer.pipeline.report.summary import summary

    before, asked = len(run.entries), len(sampler.job.prompts)
    if before:
        console.print(f"Continuing: {before} of {asked} prompts are finished.")
    try:
        for _ in draw_all(run, sampler):
            pass
    except KeyboardInterrupt:
        write_report(run)
        console.print(
            f"\nInterrupted: {len(run.entries)} of {asked} prompts are finished, in "
            f"[bold]{run.folder}[/]; the same command continues with the rest."
        )
        raise typer.Exit(INTERRUPTED) from None
    except SteerError as error:
        raise fail(error) from error
    path = write_report(run)
    console.print(summary(run))
    console.print(f"Report: [bold]{path}[/]")


def _command() -> str:
    return shlex.join(["steer", *sys.argv[1:]])


if __name__ == "__main__":
    app()
