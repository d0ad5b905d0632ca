"""The report of one guided call: as text, and as a page of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from steer.core.files.atomic import write_atomic
from steer.core.files.versions import versions
from steer.core.ledger import Ledger
from steer.core.spent import Spent
from steer.core.trace import Trace
from steer.core.types import Name
from steer.pipeline.report import departure, genealogy
from steer.pipeline.report.page import inline, render, reward_over_time, seconds, size
from steer.pipeline.report.plots import number
from steer.pipeline.report.views import CostView, ImageView, JudgeView, PromptView, RunView
from steer.search.method import Method
from steer.search.picks.base import Pick


_MOST_STAGES = 16


def text(report: Report) -> str:
    """How a call went, for a terminal: rewards, every prompt's way, and the cost."""
    select = "" if report.select is None else f", select {report.select!r}"
    lines = [f"{report.method!r}, reward {report.reward}{select}, lane width {report.lane_width}"]
    lines += [note for note in genealogy.notes(report.trace.events)]
    for prompt, words in enumerate(report.prompts):
        lines += ["", *_prompt_text(report, prompt, words)]
    for name in report.judges:
        base, guided = report.base_judges[name], report.judges[name]
        lines += ["", f"Judge {name}: {_means(base)} → {_means(guided)}"]
    lines += alarms(report)
    return "\n".join([*lines, "", *_cost_text(_cost(report))])


def alarms(report: Report) -> list[str]:
    """A line for every judge that likes the returned images less than the plain ones, though the
    reward likes them more; over the prompts whose plain image was finished."""
    found = []
    for name, scores in report.judges.items():
        bases = zip(report.base_reward, report.base_judges[name], strict=True)
        known = {p: base for p, base in enumerate(bases) if None not in base}
        rows = [row for row, (prompt, _) in enumerate(report.chosen) if prompt in known]
        if not rows:
            continue
        before = np.array([known[report.chosen[row][0]] for row in rows], dtype=float).mean(0)
        after = np.array([(report.rewards[row], scores[row]) for row in rows]).mean(0)
        if after[0] > before[0] and after[1] < before[1]:
            found.append(
                f"Alarm: the reward rises ({number(before[0])} → {number(after[0])}) and judge "
                f"{name} falls ({number(before[1])} → {number(after[1])}): the search may be "
                "finding the reward's faults; see docs/reward-hacking.md"
            )
    return found


def _prompt_text(report: Report, prompt: int, words: str) -> list[str]:
    """The rewards of a prompt's images, where they come from, and how the population did."""
    rows = [row for row, (own, _) in enumerate(report.chosen) if own == prompt]
    best = ", ".join(number(report.rewards[row]) for row in rows)
    rejected = " (not accepted)" if not all(report.accepted[row] for row in rows) else ""
    base = f"{number(report.base_reward[prompt])} → " if report.base_reward else ""
    lines = [f"Prompt {prompt}, {words!r}: {base}{best}{rejected}"]
    found = genealogy.blocks(report.trace.events, prompt, report.steps)
    for place, block in enumerate(found):
        lines += [f"  round {place + 1}"] if len(found) > 1 else []
        lines += [f"  {line}" for line in _table(block)]
    events = report.trace.events
    told = (*genealogy.lineage(events, prompt), *departure.lines(events, prompt))
    return lines + [f"  {line}" for line in told]


def _table(block: genealogy.Block) -> list[str]:
    """Reward over time: a line per judging; the middle is left out where there are many."""
    rows = [("", "best", "mean", "")]
    for stage in block.stages:
        rewards = [cell.reward for cell in stage.cells.values() if cell.reward is not None]
        mean = sum(rewards) / len(rewards) if rewards else None
        rows.append((stage.label, number(max(rewards, default=None)), number(mean), stage.verdict))
    if len(rows) > _MOST_STAGES:
        half = _MOST_STAGES // 2
        rows = [*rows[:half], (f"({len(rows) - 2 * half} more)", "", "", ""), *rows[-half:]]
    first, second, third = (max(len(row[k]) for row in rows) for k in range(3))
    return [f"{a:<{first}}  {b:>{second}}  {c:>{third}}  {d}".rstrip() for a, b, c, d in rows]


def _cost_text(cost: CostView) -> list[str]:
    spent = ", ".join(f"{name} {seconds(value)}" for name, value in cost.parts)
    differentiated = f", {cost.backward_rows} differentiated" if cost.backward_rows else ""
    previews = f"{cost.previews} previews by another decoder, " if cost.previews else ""
    shares = ", ".join(f"{name} {value:.2f}" for name, value in cost.shares)
    return [
        f"Cost: {cost.multiple:.2f} plain calls{f' in FLOPs: {shares}' if shares else ''}",
        f"Work: {cost.denoiser_rows} denoiser rows in {cost.denoiser_calls} calls{differentiated}, "
        f"{cost.decodes} images decoded, {previews}{cost.reward_calls} scored",
        *_remote_text(cost.remote),
        f"Time: {seconds(cost.total_seconds)} ({spent}); peak memory {size(cost.peak_bytes)}",
    ]


def _remote_text(remote: Spent) -> list[str]:
    if not remote.requests and not remote.reused:
        return []
    tokens = f"{remote.prompt_tokens} tokens read, {remote.completion_tokens} written"
    return [f"Servers: {remote.requests} requests, {remote.reused} scores known before, {tokens}"]


def _cost(report: Report) -> CostView:
    plain = report.steps * max(len(report.rewards), 1)
    ledger = report.ledger
    flops = {"flops": ledger.flops, "plain_flops": ledger.plain_flops}
    return CostView.of(ledger.to_dict() | flops, plain)


def _means(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return number(sum(known) / len(known) if known else None)


def save(report: Report, path: str | Path, images: Any = None) -> Path:
    """Write the page of a call; see `Report.save`."""
    path = Path(path)
    pictures = _pictures(report, images)
    write_atomic(path, render(_run_view(report, pictures)).encode())
    return path


def _pictures(report: Report, images: Any) -> list[Image.Image]:
    """The returned images: those given, else the small ones that the trace kept."""
    count = len(report.chosen)
    if not count:
        raise ValueError("interrupted: the call chose no images, so there is no page to write")
    if images is None:
        names = [(p, k, genealogy.FINAL) for p, k in report.chosen]
        if any(name not in report.trace.images for name in names):
            raise ValueError(
                "images=None: the call kept no small ones; pass images=out.images, or make the "
                "pipeline with steer.guided(..., keep_images=True)"
            )
        return [Image.fromarray(report.trace.images[name]) for name in names]
    found = [_picture(image) for image in images]
    if len(found) != count:
        raise ValueError(f"images: {len(found)} for a call that returned {count}; pass out.images")
    return found


def _picture(image: Any) -> Image.Image:
    """One image or video (its middle frame): PIL, an array `(H, W, 3)` or a tensor `(3, H, W)`."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, list):
        return _picture(image[len(image) // 2])
    channels_first = not isinstance(image, np.ndarray)
    pixels = np.asarray(image.detach().float().cpu() if channels_first else image)
    if pixels.ndim == 4:
        pixels = pixels[len(pixels) // 2]
    pixels = np.moveaxis(pixels, 0, -1) if channels_first else pixels
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"images: one of shape {tuple(image.shape)}; pass decoded images (PIL, numpy or "
            "tensors), not latents"
        )
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


def _run_view(report: Report, pictures: list[Image.Image]) -> RunView:
    prompts = report.prompts
    views = tuple(_prompt_view(report, prompt, pictures) for prompt in range(len(prompts)))
    settings = {
        "method": repr(report.method),
        "reward": report.reward,
        "lane_width": report.lane_width,
    }
    if report.select is not None:
        settings["select"] = repr(report.select)
    return RunView(
        title=prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts",
        kind="call",
        status="interrupted" if report.interrupted or report.stopped else "finished",
        reward=report.reward,
        prompts=views,
        asked=len(prompts),
        cost=_cost(report),
        configuration={**settings, "steps": report.steps, "seed": report.seed},
        versions=versions(),
        when=datetime.now(UTC).isoformat(timespec="minutes")[:16].replace("T", " ") + " UTC",
    )


def _prompt_view(report: Report, prompt: int, pictures: list[Image.Image]) -> PromptView:
    words, events = report.prompts[prompt], report.trace.events
    rows = [row for row, (own, _) in enumerate(report.chosen) if own == prompt]
    level, kept = report.base_reward[prompt], report.trace.images.get((prompt, 0, genealogy.FINAL))
    base = None
    if kept is not None:
        base = _view(Image.fromarray(kept), f"image of the plain call: {words}", level)
    found = genealogy.blocks(events, prompt, report.steps)
    for cell in (c for block in found for stage in block.stages for c in stage.cells.values()):
        image = None if cell.key is None else report.trace.images.get((prompt, *cell.key))
        cell.image = None if image is None else inline(Image.fromarray(image))
    return PromptView(
        index=prompt,
        prompt=words,
        seed=None,
        base=base,
        guided=tuple(
            _view(pictures[row], f"guided image {k + 1}: {words}", report.rewards[row])
            for k, row in enumerate(rows)
        ),
        accepted=all(report.accepted[row] for row in rows),
        judges=tuple(
            JudgeView(name, report.base_judges[name][prompt], scores[rows[0]])
            for name, scores in report.judges.items()
        ),
        blocks=tuple(found),
        plot=reward_over_time(found, report.reward, level),
        cost=CostView.of({}, report.steps * len(rows)),
        steps=report.steps,
        lines=(*genealogy.lineage(events, prompt), *departure.lines(events, prompt)),
        notes=(*genealogy.notes(events), *alarms(report)) if prompt == 0 else (),
    )


def _view(image: Image.Image, alt: str, reward: float | None) -> ImageView:
    return ImageView(inline(image), *image.size, alt, reward)


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """How a guided call went.

    Attributes:
        method: The method that ran; its repr is its configuration.
        reward: The optimised reward's name.
        seed: Where particles beyond the plain call's come from.
        steps: Denoiser calls of the plain call.
        lane_width: Particles per returned image in one denoiser call.
        rewards, accepted: Per returned image.
        judges: Scores of the returned images by judge.
        base_reward: Reward of particle 0, the plain call's image, per prompt; `None` where it was
            not finished (a pruned particle).
        base_judges: The same by judge.
        chosen: (prompt, particle) per returned image.
        trace, ledger: What happened, and what it cost.
        denoiser: Which denoiser answered: `"base"`, a tuned one's name, or a blend.
        interrupted: The pipeline was told to stop (`pipe._interrupt`); its images are unfinished.
        stopped: The search was (`on_step`); its images are the best so far, `accepted` says only
            what a gate had accepted before.
        prompts: What the reward read.
        select: How the returned images were chosen among the finished ones; `None` is the best.
        kl: Per prompt, how far its images are from the plain sampler's in distribution: an upper
            estimate of the KL per image in nats, 0 where nothing was chosen; `None` where there is
            no formula (guidance by gradients, optimised noise, beams and trees).
        noise_norm: Per returned image whose initial noise a method made: how many standard
            deviations its squared norm is from that of a draw; `None` for draws.

    `print(report)` shows rewards over time, who descends from whom, and the cost.
    """

    method: Method
    reward: str
    seed: int
    steps: int
    lane_width: int
    rewards: list[float]
    accepted: list[bool]
    judges: dict[str, list[float]]
    base_reward: list[float | None]
    base_judges: dict[str, list[float | None]]
    chosen: list[Name]
    trace: Trace
    ledger: Ledger
    interrupted: bool = False
    stopped: bool = False
    denoiser: str = "base"
    prompts: list[str] = field(default_factory=list)
    select: Pick | None = None
    kl: list[float | None] = field(default_factory=list)
    noise_norm: list[float | None] = field(default_factory=list)

    def __str__(self) -> str:
        return text(self)

    def save(self, path: str | Path, images: Any = None) -> Path:
        """Write one self-contained HTML page: images, reward over time, genealogy, cost.

        Args:
            path: Where to.
            images: `out.images`; by default the small ones that `keep_images=True` kept, which the
                genealogy shows too.

        Returns:
            `path`.

        Raises:
            ValueError: No images given and none kept, latents, or as many as the call did not
                return.
        """
        return save(self, path, images)
