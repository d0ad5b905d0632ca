"""Arms as guided pipelines, and the drawing of their images."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from steer.core.checks import did_you_mean
from steer.core.errors import ComparisonError, RewardError
from steer.core.files.atomic import plain
from steer.core.seeds import pair_seed
from steer.driver.call import of_prompts
from steer.driver.denoisers import parse_blend
from steer.driver.denoisers.blend import cost
from steer.driver.denoisers.checkpoints import load as load_tuned
from steer.jobs.call import check_known
from steer.jobs.compare.config import Arm, Comparison
from steer.jobs.compare.store import Unit
from steer.jobs.effort import effort as sized
from steer.jobs.pipelines import default_steps, dtype_of, load_pipeline
from steer.jobs.reward_loader import RewardLoader
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.text import is_bare, parse_method
from steer.pipeline.guided import guided


class Studio:
    """A loaded pipeline and reward, from which each arm's images are drawn.

    Args:
        comparison: What is compared.
        device: Where this process computes.
        pipe: The pipeline; loaded when left out.

    Raises:
        SteerError, ValueError: The pipeline, the reward, a checkpoint, method, blend or scheduler
            is not to be had.
    """

    def __init__(self, comparison: Comparison, device: str, pipe: Any = None) -> None:
        self.comparison, self.device = comparison, device
        for arm in comparison.arms:
            check_arm(arm)  # mistakes are told before anything is loaded
        dtype = dtype_of(comparison.dtype, device, comparison.pipeline)
        self.reward = RewardLoader(device, checkpoints=comparison.checkpoints).load(
            comparison.reward, comparison.scale
        )
        self.pipe = pipe if pipe is not None else load_pipeline(comparison.pipeline, device, dtype)
        self.steps = comparison.steps or default_steps(self.pipe, comparison.pipeline)
        self._scheduler = self.pipe.scheduler
        self._tuned: dict[str, Any] = {}

    @contextmanager
    def arm(self, arm: Arm) -> Iterator[Painter]:
        """What draws an arm's images; the pipeline's own scheduler is put back at the end."""
        name = arm.scheduler or self.comparison.scheduler
        try:
            if name is not None:
                self.pipe.scheduler = make_scheduler(name, self._scheduler)
            yield Painter(self, arm)
        finally:
            self.pipe.scheduler = self._scheduler

    def checkpoint(self, source: str) -> Any:
        """A tuned checkpoint, loaded once for all arms that use it."""
        if source not in self._tuned:
            self._tuned[source] = load_tuned(self.pipe, source)
        return self._tuned[source]

    def keep_only(self, arms: Sequence[Arm]) -> None:
        """Let go of the tuned checkpoints that none of these arms uses."""
        wanted = {arm.tuned for arm in arms}
        self._tuned = {k: v for k, v in self._tuned.items() if k in wanted}


class Painter:
    """One arm's guided pipeline."""

    def __init__(self, studio: Studio, arm: Arm) -> None:
        shared = studio.comparison
        self.arm, self.studio = arm, studio
        self.steps = arm.steps or studio.steps
        scale = arm.guidance_scale if arm.guidance_scale is not None else shared.guidance_scale
        self._options: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
        if shared.size is not None:
            self._options |= dict(zip(("height", "width"), shared.size, strict=True))
        _check_options(studio.pipe, self._options)
        check_known(studio.pipe, shared.call)
        self._options |= shared.call
        extra: dict[str, Any] = {}
        if arm.tuned is not None:
            extra["tuned"] = studio.checkpoint(arm.tuned)
        if arm.blend is not None:
            extra["blend"] = parse_blend(arm.blend)
        self.fingerprint = getattr(extra.get("tuned"), "fingerprint", None)
        self._guided = guided(
            studio.pipe,
            studio.reward,
            **effort(arm, self.steps, extra.get("blend")),
            lane_width=shared.lane_width,
            preview=arm.preview,
            **extra,
        )

    def draw(self, units: Sequence[Unit], prompts: Sequence[str]) -> list[tuple[Any, Any]]:
        """One call's images, and a record of each: method, cost (its share of the call's), reward.

        The noise follows from (seed, prompt's index) alone, so it is the same in every arm and
        whatever else is drawn, in whichever process.
        """
        self.studio.pipe.set_progress_bar_config(disable=True)
        seeds = [pair_seed(unit.seed, unit.prompt) for unit in units]
        try:
            out = self._guided(
                list(prompts),
                num_inference_steps=self.steps,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                **of_prompts(self._options, len(prompts)),
            )
        except RewardError as error:
            raise RewardError(f"arm {self.arm.name!r}: {error}") from error
        report = out.report
        shared = {
            "method": repr(report.method),
            "denoiser": getattr(report, "denoiser", "base"),
            "weights": self.fingerprint,
            "steps": report.steps,
            "ledger": _share(report.ledger.to_dict(), len(units)),
        }
        rewards = plain(out.rewards)
        records = [
            {
                "arm": unit.arm,
                "prompt": unit.prompt,
                "seed": unit.seed,
                "noise_seed": seeds[k],
                "reward": rewards[k],
                "accepted": bool(out.accepted[k]),
                **shared,
            }
            for k, unit in enumerate(units)
        ]
        return list(zip(out.images, records, strict=True))


_WHOLE = ("cfg_rows", "peak_bytes")  # of a ledger: not sums over images


def _share(ledger: Mapping[str, Any], images: int) -> dict[str, Any]:
    """One image's part of what a call of several cost."""

    def part(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: part(own) for key, own in value.items()}
        return value / images if value % images else value // images

    return {k: v if k in _WHOLE or images == 1 else part(v) for k, v in ledger.items()}


def _check_options(pipe: Any, options: Mapping[str, Any]) -> None:
    """Raise ComparisonError for an argument that the pipeline's call does not take."""
    known = inspect.signature(type(pipe).__call__).parameters
    odd = next((key for key in options if key not in known), None)
    if odd is not None:
        key = odd if odd == "guidance_scale" else "size"
        raise ComparisonError(
            f"{key}: {type(pipe).__name__} takes no {odd!r}: leave {key} out of the configuration"
        )


def check_arm(arm: Arm) -> None:
    """Raise ValueError for a method or blend that cannot be read."""
    try:
        if arm.method is not None:
            parse_method(arm.method)
        if arm.blend is not None:
            parse_blend(arm.blend)
    except ValueError as error:
        raise ComparisonError(f"arm {arm.name!r}: {error}") from error


def effort(arm: Arm, steps: int, blend: Any = None) -> dict[str, Any]:
    """`method` or `compute` for `guided`; neither in the configuration is the plain call.

    Raises:
        ComparisonError: A method by its bare name, and less compute than one call of the blend.
    """
    if arm.method is None:
        return {"method": BestOfN(1)} if arm.compute is None else {"compute": arm.compute}
    calls = 1 if blend is None else cost(blend, steps)
    if is_bare(arm.method) and arm.compute is not None and arm.compute < calls:
        raise ComparisonError(
            f"arm {arm.name!r}: compute={arm.compute:g} with blend={arm.blend!r}, one call of "
            f"which costs {calls:g}: give at least that"
        )
    return sized(arm.method, arm.compute)


def make_scheduler(name: str, like: Any) -> Any:
    """A diffusers scheduler by its class name, with the configuration of `like`.

    Raises:
        ComparisonError: diffusers has none of this name.
    """
    import diffusers

    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None or not hasattr(kind, "from_config"):
        known = [n for n in dir(diffusers) if n.endswith("Scheduler") and n[0].isupper()]
        hint = did_you_mean(name, known)
        raise ComparisonError(
            f"scheduler={name!r}: not a scheduler of diffusers; {hint}write for example "
            "DDIMScheduler"
        )
    return kind.from_config(like.config)
