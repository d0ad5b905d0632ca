"""Pilot runs through the user's own pipeline: scores for thresholds, previews for cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steer.core.errors import ThresholdError
from steer.pipeline.previews import Previews
from steer.rewards.parts import check_absolute, identity
from steer.rewards.thresholds.calibration import Calibration, pilots_needed
from steer.rewards.thresholds.pilots import Pilots
from steer.rewards.thresholds.threshold import Threshold


def pilots(
    guided: Any,
    prompts: Sequence[str],
    *,
    at: Sequence[float] = (),
    seed: int = 0,
    batch: int = 1,
    **call: Any,
) -> Pilots:
    """Sample one plain image per prompt and score it, and its previews on the way.

    Args:
        guided: A guided pipeline; only its reward is used, not its method.
        prompts: Drawn as those that will be served; a prompt that stands there twice gives two
            pilots from different noise.
        at: Where previews are scored, as fractions of the steps; nowhere by default.
        seed: Pilot i starts from a generator seeded with `seed + i`.
        batch: Prompts per call.
        **call: What else the pipeline is given: the very settings that will be used
            (`num_inference_steps`, `guidance_scale`, `height`, ...).

    Returns:
        `Pilots`; their `scores()` fit a `Threshold`.

    Raises:
        ValueError: No prompts, a batch below 1, call arguments that are set here, or a reward that
            only ranks candidates.
    """
    check_absolute(guided.reward, "a threshold")
    check_pilots(prompts, batch, call)
    method = Previews(tuple(at))
    rows: list[list[float]] = []
    grid: dict[str, Any] = {}
    for start in range(0, len(prompts), batch):
        texts = list(prompts[start : start + batch])
        seeds = range(seed + start, seed + start + len(texts))
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        given = {"output_type": "latent", **call, "prompt": texts, "generator": generators}
        guided(**given, method=method)
        report = guided.report
        (grid,) = report.trace.of("grid")
        rows += [_row(report.trace.of("score", p)) for p in range(len(texts))]
    table = np.array(rows, dtype=np.float64)
    name, version = identity(guided.reward)
    return Pilots(
        prompts=tuple(prompts),
        steps=tuple(grid["steps"]),
        count=guided.report.steps,
        noise=tuple(grid["noise"]),
        previews=table[:, :-1],
        finals=table[:, -1],
        reward=name,
        version=version,
        model=model_name(guided.pipe),
    )


def calibrate_gate(
    guided: Any,
    prompts: Sequence[str],
    threshold: Threshold | float | str | Path | None = None,
    *,
    quantile: float | None = None,
    at: Sequence[float] = (0.5, 0.65),
    alpha: float = 0.1,
    seed: int = 0,
    batch: int = 1,
    **call: Any,
) -> Calibration:
    """Pilot runs, and the cuts for `Gate(calibration=...)` that they support.

        calibration = steer.calibrate_gate(guided, prompts, threshold=0.6, num_inference_steps=20)
        calibration.save("calibration.json")
        method = steer.Gate(steer.BestOfN(4), calibration=calibration)
        guided(prompt, method=method, num_inference_steps=20)

    Args:
        threshold: A reward, a `Threshold` that was not fitted on these pilots, or its path.
        quantile: Instead of a threshold: every other pilot fits one at this quantile, and the rest
            calibrate (a threshold must not come from the pilots that calibrate).
        alpha: Bound on the share of particles that are dropped though they would be accepted; it
            takes `ceil(1 / alpha) - 1` accepted pilots.
        guided, prompts, at, seed, batch, **call: See `pilots`.

    Raises:
        ThresholdError: See `Calibration.fit`; before any pilot runs if no number of acceptances
            could do, or the threshold is of another reward.
        ValueError: Both or neither of `threshold` and `quantile`, or see `pilots`.
    """
    if (threshold is None) == (quantile is None):
        raise ValueError(
            f"threshold={threshold!r}, quantile={quantile!r}: give one of them, such as "
            "threshold=steer.Threshold.load('tau.json') or quantile=0.8"
        )
    if isinstance(threshold, str | Path):
        threshold = Threshold.load(threshold)
    if isinstance(threshold, Threshold):
        threshold.check(guided.reward)
    most = len(prompts) if quantile is None else -(-len(prompts) // 2)
    if most < pilots_needed(alpha):
        raise ThresholdError(
            f"alpha={alpha:g} needs {pilots_needed(alpha)} accepted pilots, and at most {most} of "
            f"{len(prompts)} prompts can give one: give more prompts, or raise alpha"
        )
    if not at:
        raise ValueError("at=(): name a step at least, such as at=(0.5, 0.65)")
    runs = pilots(guided, prompts, at=at, seed=seed, batch=batch, **call)
    if threshold is not None:
        return Calibration.fit(runs, threshold, alpha)
    fitted = Threshold.fit(runs.take(slice(1, None, 2)).scores(), quantile)
    return Calibration.fit(runs.take(slice(0, None, 2)), fitted, alpha)


def model_name(pipe: Any) -> str:
    """What a pipeline was loaded from, without the machine's folders; else its class."""
    name = str(getattr(pipe, "name_or_path", None) or "")
    if name and Path(name).exists():
        return Path(name).resolve().name
    return name or type(pipe).__name__


def check_pilots(prompts: Sequence[str], batch: int, call: Mapping[str, Any]) -> None:
    """Raise ValueError for prompts that are no list of texts, or arguments that pilots set."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}: must be a list of texts, one per pilot")
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch={batch!r}: prompts per call, at least 1")
    taken = {"prompt", "generator", "method", "compute", "num_images_per_prompt"} & set(call)
    if taken:
        raise ValueError(
            f"{', '.join(sorted(taken))}: set by the pilots themselves (plain images, seeded by "
            "seed=); leave it out"
        )


def _row(events: list[dict[str, Any]]) -> list[float]:
    """Preview rewards in the order of the steps, then the final one."""
    previews = sorted((e["step"], e["reward"][0]) for e in events if e["preview"])
    (final,) = (e["reward"][0] for e in events if not e["preview"])
    return [*(reward for _, reward in previews), final]
