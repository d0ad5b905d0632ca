"""What a guided call hands back: the pipeline's own output, with rewards and a report on it."""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import AGAIN, UnsupportedPipelineError
from steer.core.types import Name, Reward
from steer.core.warn import warn
from steer.driver.decoding.nan import nan_rows
from steer.driver.safety import flags_of
from steer.pipeline.images import are_pictures, first_of, images_of
from steer.pipeline.report.call import Report
from steer.pipeline.report.departure import noise_norms
from steer.pipeline.run import Run
from steer.rewards.frames import takes_videos
from steer.rewards.inputs import Outputs
from steer.rewards.weights import unique
from steer.search.context import Context


def finish(
    run: Run, output: Any, latent: bool, start: float, *, interrupted: bool = False
) -> tuple[Any, Report]:
    """Score what was not scored, and hang the report on the pipeline's output.

    Args:
        run: Whose search has ended, or not.
        output: The pipeline's.
        latent: Whether that holds latents.
        start: When the call began, by `time.perf_counter`.
        interrupted: Whether the search did not come to its end.
    """
    ctx = run.context
    rewards: list[float] = []
    images: Tensor | None = None
    if interrupted:
        output = _plain_rows(output, run)
        rewards = [float("nan")] * run.rows
        accepted = [False] * len(rewards)
    else:
        assert ctx is not None
        _check_pixels(run, ctx)
        rewards, images = _scores(run, ctx, output, latent)
        flags = {p: iter(ctx.accepted.get(p, ())) for p in range(len(run.texts))}
        stopped = run.progress.stopped  # then only what a gate accepted before is accepted
        accepted = [next(flags[prompt], not stopped) for prompt, _ in run.chosen]
        accepted = _passed(run, ctx, accepted)
    prompts = range(len(run.texts))
    base = [None if ctx is None else _base_reward(ctx, (p, 0)) for p in prompts]
    judges, base_judges = ({}, {}) if ctx is None else _judged(run, ctx, images)
    if not latent:
        run.ledger.decodes += run.rows
    _count_flops(run, latent)
    run.ledger.seconds["total"] = time.perf_counter() - start
    run.ledger.read_peak()
    kl, norms = _departure(run, None if interrupted else ctx)
    report = Report(
        method=run.method,
        reward=run.reward.name,
        seed=run.seed,
        steps=run.steps,
        lane_width=run.lane_width,
        rewards=rewards,
        accepted=accepted,
        judges=judges,
        base_reward=base,
        base_judges=base_judges,
        chosen=run.chosen,
        trace=run.trace,
        ledger=run.ledger,
        interrupted=interrupted,
        stopped=run.progress.stopped,
        denoiser="base" if run.models is None else run.models.name,
        prompts=run.texts,
        select=run.select,
        kl=kl,
        noise_norm=norms,
    )
    if not isinstance(output, tuple):
        with suppress(AttributeError):  # a pipeline of a user's own that returns a bare tensor
            output.rewards, output.accepted, output.report = rewards, accepted, report
    return output, report


def _departure(run: Run, ctx: Context | None) -> tuple[list[float | None], list[float | None]]:
    """How far the call went from the plain sampler, told in the trace too: KL, norms of noises."""
    if ctx is None:
        return [None] * len(run.texts), [None] * len(run.chosen)
    whole = not run.progress.stopped
    kl = [run.method.kl(ctx, prompt) if whole else None for prompt in range(len(run.texts))]
    norms = noise_norms(ctx.starts, run.chosen, run.source.scheduler)
    for prompt, value in enumerate(kl):
        own = [norms[row] for row, (p, _) in enumerate(run.chosen) if p == prompt]
        run.trace.log("departure", prompt=prompt, kl=value, noise_norm=own)
    return kl, norms


def _count_flops(run: Run, latent: bool) -> None:
    """What the denoiser, and the pipeline's own decode, come to in FLOPs."""
    meter = None if run.context is None else run.context.meter
    if meter is None or meter.costs is None:
        run.ledger.flops.clear()
        return
    meter.spend("row", run.ledger.denoiser_rows)
    if not latent:
        meter.spend("decode", run.rows)
    run.ledger.plain_flops = run.rows * meter.costs.plain(run.steps)


def _base_reward(ctx: Context, name: Name) -> float | None:
    return None if name in ctx.judging.nan else ctx.finals.get(name)


def _check_pixels(run: Run, ctx: Context) -> None:
    """Raise RewardError where what is returned has NaN pixels, which 8 bits no longer show."""
    names = run.chosen
    broken = [name in ctx.judging.nan for name in names]
    if run.decoded is not None:
        broken = map(operator.or_, broken, run.decoded.of(len(names)))
    if run.winners is not None:
        broken = map(operator.or_, broken, nan_rows(run.winners.x))
    for name, nan in zip(names, broken, strict=True):
        if nan:
            raise ctx.judging.nan_error(name)


def _passed(run: Run, ctx: Context, accepted: list[bool]) -> list[bool]:
    """What is accepted and not flagged by the safety checker; warns of what is."""
    flagged = [name in ctx.judging.flagged for name in run.chosen]
    prompts = [name[0] for name in run.chosen if name in ctx.judging.flagged]
    for prompt in dict.fromkeys(prompts):
        message = (
            f"prompt {prompt} ({run.texts[prompt]!r}): the pipeline's safety checker flagged what "
            "is returned, and no better candidate is left: accepted is False, and the reward is "
            "that of the image which takes its place; use more particles or another seed"
        )
        warn(message, stacklevel=4)
    return [good and not flag for good, flag in zip(accepted, flagged, strict=True)]


def _scores(run: Run, ctx: Context, output: Any, latent: bool) -> tuple[list[float], Tensor | None]:
    """Rewards of the returned images, and the images where judges want them."""
    missing = any(name not in ctx.finals for name in run.chosen)
    images = None
    with torch.no_grad():
        if missing or run.judges or not latent:
            images = _images(run, ctx, output, latent)
        if images is not None and not missing:
            missing = not ctx.judging.glimpses.agree(images, run.chosen, run.exact)
            if missing:
                _mend(run, ctx)
        if missing:
            assert images is not None
            ctx.judging.record(images, run.chosen)
            ctx.judging.flag(run.chosen, flags_of(output, len(run.chosen)))
    return [ctx.finals[name] for name in run.chosen], images


def _mend(run: Run, ctx: Context) -> None:
    """What to do where the returned images are not the ones that were scored.

    Raises:
        UnsupportedPipelineError: The method can do without the pipeline's loop.
    """
    what = f"{type(run.pipe).__name__} returns other images than the latents of its loop decode to"
    if not run.method.needs_loop:
        raise UnsupportedPipelineError(f"{what}; {AGAIN}")
    warn(
        f"{what} (it edits them afterwards): candidates were compared as the latents decode, and "
        "rewards are those of the returned images",
        stacklevel=5,
    )
    ctx.judging.forget()


def _judged(
    run: Run, ctx: Context, images: Tensor | None
) -> tuple[dict[str, list[float]], dict[str, list[float | None]]]:
    """Judges' scores of the returned images, and of particle 0 per prompt where it was finished.

    A judge that compares candidates compares these with each other.
    """
    chosen = [] if images is None else run.chosen
    bases = [(prompt, 0) for prompt in ctx.judging.base if (prompt, 0) not in chosen]
    groups = [] if images is None else [(images, chosen)]
    if bases:
        groups.append((_batch([ctx.judging.base[prompt] for prompt, _ in bases]), bases))
    judges: dict[str, list[float]] = {}
    base: dict[str, list[float | None]] = {}
    for name, judge in zip(unique([judge.name for judge in run.judges]), run.judges, strict=True):
        found = _score_together(ctx, groups, judge)
        base[name] = [found.get((prompt, 0)) for prompt in range(len(run.texts))]
        if images is not None:
            judges[name] = [found[particle] for particle in chosen]
    return judges, base


def _batch(images: list[Any]) -> Any:
    return torch.stack(images) if isinstance(images[0], Tensor) else Outputs(images)


def _score_together(
    ctx: Context, groups: Sequence[tuple[Tensor, Sequence[Name]]], judge: Reward
) -> dict[Name, float]:
    """A judge's scores of several batches of images, combined as one population."""
    if not groups:
        return {}
    with torch.no_grad():
        pieces = [ctx.judging.parts(images, ids, judge) for images, ids in groups]
        parts = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        names = [name for _, ids in groups for name in ids]
        return dict(zip(names, ctx.judging.combine(parts, names, judge).tolist(), strict=True))


def _images(run: Run, ctx: Context, output: Any, latent: bool) -> Tensor:
    """The returned images `(B, 3, H, W)`, or videos `(B, F, 3, H, W)`, as floats in [0, 1].

    Latents that are returned may be unpacked and unscaled (Flux 2 Klein, LTX 2): those of the loop
    are decoded. A pipeline that knows no `output_type="latent"` (DeepFloyd IF) returns images.
    """
    if run.made is not None:
        return run.made(run.chosen)
    first = first_of(output)
    if latent and isinstance(first, Tensor):
        assert run.winners is not None
        return ctx.show(run.winners)
    images = images_of(first, run.source.device)
    if images is None:
        raise UnsupportedPipelineError(
            f"{type(run.pipe).__name__}: its output is no image that could be scored; {AGAIN}"
        )
    if isinstance(first, Tensor):
        images = ctx.model.returned(images)
    if images.ndim == 4 and len(images) != len(run.chosen):  # the frames of one video
        images = images[None]
    if not are_pictures(images) or (images.ndim == 5 and not takes_videos(run.reward)):
        raise UnsupportedPipelineError(
            f"{type(run.pipe).__name__}: its output is no picture (depths, normals, views); {AGAIN}"
        )
    return images


def _plain_rows(output: Any, run: Run) -> Any:
    """An interrupted call's output, cut to as many rows as the plain call has."""
    rows = run.rows * run.breadth
    keep = [row for row in range(rows) if row % (run.images * run.breadth) < run.images]

    def cut(value: Any) -> Any:
        if isinstance(value, list) and len(value) == rows:
            return [value[row] for row in keep]
        if isinstance(value, Tensor | np.ndarray) and len(value) == rows:
            return value[keep]
        return value

    if isinstance(output, tuple):
        return tuple(cut(value) for value in output)
    for key in list(output.keys()):
        output[key] = cut(output[key])
    return output
