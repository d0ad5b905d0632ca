"""`steer sample`: prompts drawn with a pipeline, steered by a reward, into a run folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer.cli.exits import INTERRUPTED, bad_input
from steer.cli.spread import Ray, Workers
from steer.cli.terminal import command, escape, progress, say


if TYPE_CHECKING:
    from steer.core.files.run_folder import RunFolder
    from steer.jobs.sample_job import SampleJob
    from steer.jobs.sampling import Drawn, Prompt
    from steer.jobs.spread.cluster import Cluster
    from steer.jobs.spread.worker import Crew

Prompts = Annotated[
    list[str] | None, typer.Argument(help="What to draw; one or more.", show_default=False)
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        help="Further prompts: text with one per line ('-' is stdin), .json, .jsonl, .csv or .tsv.",
        show_default=False,
    ),
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
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        help="A reward to report but not optimise; may be repeated. 'auto' chooses one of another "
        "family.",
        show_default=False,
    ),
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
LaneWidth = Annotated[
    int | None,
    typer.Option(
        help="Particles per image in one denoiser call. Default: set by steer.", show_default=False
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Devices = Annotated[
    str | None,
    typer.Option(
        help="Spread the particles of each call over several devices: cuda:0,cuda:1.",
        show_default=False,
    ),
]
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
Preview = Annotated[
    str | None,
    typer.Option(
        help="What decodes previews: 'vae' (the pipeline's own), 'tiny', 'linear', or the folder "
        "or hub id of an AutoencoderTiny.",
        show_default=False,
    ),
]
Plans = Annotated[
    str | None,
    typer.Option(
        help="What --compute is spent on: a plans.json that `steer calibrate` wrote.",
        show_default=False,
    ),
]
Scale = Annotated[
    str | None,
    typer.Option(
        help="Put the reward on the scale of its prompts' plain images: a scales.json that "
        "`steer scale` wrote.",
        show_default=False,
    ),
]
Further = Annotated[
    list[str] | None,
    typer.Option(
        "--call",
        help="A further argument of the pipeline's calls, NAME=VALUE: 'negative_prompt=blurry', "
        "true_cfg_scale=4. Repeat it for several.",
        show_default=False,
    ),
]
Base = Annotated[bool, typer.Option(help="Also draw the plain call's image, to compare with.")]


def sample(
    prompts: Prompts = None,
    out: Out = Path("steer-out"),
    pipeline: Pipeline = "shapes",
    reward: Reward = "shapes",
    compute: Compute = None,
    method: Method = None,
    method_args: MethodArgs = None,
    judge: Judges = None,
    prompts_file: PromptsFile = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    images_per_prompt: ImagesPerPrompt = 1,
    lane_width: LaneWidth = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    base: Base = True,
    tuned: Tuned = None,
    blend: Blend = None,
    preview: Preview = None,
    plans: Plans = None,
    scale: Scale = None,
    devices: Devices = None,
    call: Further = None,
    ray: Ray = None,
    workers: Workers = None,
) -> None:
    """Draw prompts with a pipeline, steered by a reward.

    Writes PNG images that carry their reproduction data, run.json and report.html.
    Interrupt it at any time: finished images stay, and the same command continues.

    Example: steer sample "a red circle left of a blue square" --compute 4 --out results
    """
    with bad_input():
        from steer.core.files.atomic import usable
        from steer.core.files.folder import held
        from steer.jobs.call import read_call
        from steer.jobs.sample_job import SampleJob
        from steer.jobs.spread.cluster import connected
        from steer.methods.text import method_option

        given = method_option(method, method_args)
        texts = (*(prompts or ()), *read_prompts(prompts_file))
        if not texts:
            raise ValueError('no prompts: write steer sample "a red circle", or use --prompts-file')
        job = SampleJob(
            texts,
            pipeline=pipeline,
            reward=reward,
            compute=compute,
            method=given,
            judges=tuple(judge or ()),
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            images_per_prompt=images_per_prompt,
            device=device,
            dtype=dtype,
            lane_width=lane_width,
            base=base,
            tuned=tuned,
            blend=blend,
            preview=preview,
            plans=plans,
            scale=scale,
            devices=None if devices is None else tuple(devices.split(",")),
            call=read_call(call or ()),
        )
        if devices is not None and ray is not None:
            raise ValueError("--devices with --ray: a worker has a device of its own; give one")
        usable(out)
        with connected(ray, workers) as cluster, held(out):
            _sample(job, out, cluster)


def read_prompts(path: Path | None, flag: str = "--prompts-file") -> list[str]:
    """The prompts of a file; ValueError names it where it cannot be read."""
    from steer.core.files.text import read_texts

    if path is None:
        return []
    try:
        return read_texts(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{flag} {str(path)!r}: {why}") from error


def _known_run(out: Path) -> RunFolder | None:
    """The run that is in the folder already; RecordError where something else is."""
    from steer.core.files.run_folder import RUN_FILE, RunFolder, check_own

    check_own(out)
    return RunFolder.load(out) if (out / RUN_FILE).exists() else None


def _sample(job: SampleJob, out: Path, cluster: Cluster | None) -> None:
    from steer.core.files.run_folder import PAGE_FILE, RunFolder

    run, arguments = _known_run(out), job.to_dict()
    if run is not None and run.entries:
        run.check(arguments)
        if not run.missing():
            if run.status == "finished" and (out / PAGE_FILE).is_file():
                say(f"Finished before: nothing to do in [bold]{escape(out)}[/].")
            else:
                _show(run)
            return
    say(f"[dim]Loading {escape(job.pipeline)} and the reward {escape(job.reward)}[/]")
    from steer.jobs.sampling import Sampler  # torch and diffusers, which take seconds
    from steer.jobs.spread.crew import crew

    left = len(job.prompts if run is None or not run.entries else run.missing())
    with crew(partial(Sampler, job), cluster, device=job.device, units=left) as samplers:
        if run is None or not run.entries:
            run = RunFolder.create(out, arguments, kind="sample", command=command())
        _draw(run, samplers, bar=cluster is not None)


def _draw(run: RunFolder, samplers: Crew[Prompt, Drawn], bar: bool) -> None:
    """Draw what is missing, then show what came of it; an interrupt leaves what is finished.

    Args:
        bar: Whether there is one over prompts; in one process the pipeline shows its own.
    """
    from steer.jobs.sampling import draw_missing
    from steer.pipeline.report.page import write_report

    asked = len(run.data["arguments"]["prompts"])
    left = len(run.missing())
    if left < asked:
        say(f"Continuing: {asked - left} of {asked} prompts are finished.")
    try:
        progress("drawing", (1 for _ in draw_missing(run, samplers)), left, bar, unit="prompt")
    except KeyboardInterrupt:
        write_report(run)
        say(
            f"\nInterrupted: {len(run.entries)} of {asked} prompts are finished, in "
            f"[bold]{escape(run.folder)}[/]; the same command continues with the rest."
        )
        raise typer.Exit(INTERRUPTED) from None
    _show(run)


def _show(run: RunFolder) -> None:
    """Write the page of a run whose images are all there, and show what came of it."""
    from steer.cli.summary import summary
    from steer.pipeline.report.page import run_view, write_report

    run.data["status"] = "finished"
    view = run_view(run)
    path = write_report(run, view)
    run.close("finished")  # last: whoever finds this finds the page, too
    say(summary(view))
    say(f"Report: [bold]{escape(path)}[/]")
