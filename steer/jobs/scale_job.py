"""What `steer scale` is asked to do, and doing it: the scales of a reward for given prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from steer.core.checks import one_of, whole
from steer.jobs.call import check_call, check_known
from steer.jobs.reward_loader import RewardLoader, reward_parts


if TYPE_CHECKING:
    from steer.rewards.thresholds.scale import Scales

Unit = Literal["z", "percentile"]
Unknown = Literal["raise", "global"]


@dataclass(frozen=True)
class ScaleJob:
    """The arguments of a fit. Bad values raise ValueError.

    Attributes:
        prompts: Those that will be searched, each once.
        pipeline, reward, steps, guidance_scale, seed, device, dtype, call: As in
            `SampleJob`.
        each: Plain images of every prompt, at least 2.
        unit, unknown: As in `steer.rewards.Scale`.
    """

    prompts: tuple[str, ...]
    pipeline: str = "shapes"
    reward: str = "shapes"
    each: int = 8
    unit: Unit = "z"
    unknown: Unknown = "raise"
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    call: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError(
                f"prompts={list(self.prompts)!r}: give at least one, none of them empty"
            )
        if self.steps is not None:
            whole("steps", self.steps, "steps=30")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")
        check_call(self.call or {})
        one_of("unit", self.unit, get_args(Unit))
        one_of("unknown", self.unknown, get_args(Unknown))
        reward_parts(self.reward)


def fit_scale(job: ScaleJob, path: Path) -> Scales:
    """Draw and score the plain images, and write the scales of all parts of the reward.

    Args:
        job: What to do.
        path: Where the scales go.

    Raises:
        SteerError, ValueError: The pipeline, reward or device is not to be had, or the reward has
            no scale.
    """
    from steer.jobs.device import usable_device
    from steer.jobs.pipelines import default_steps, dtype_of, load_pipeline
    from steer.pipeline.guided import guided
    from steer.pipeline.scale_runs import fit_scales
    from steer.rewards.parts import check_absolute, check_prompts

    device = usable_device(job.device)
    reward = RewardLoader(device).load(job.reward)
    check_absolute(reward, "a scale")
    check_prompts(reward, job.prompts)
    pipe = load_pipeline(job.pipeline, device, dtype_of(job.dtype, device, job.pipeline))
    call: dict[str, Any] = {"num_inference_steps": job.steps or default_steps(pipe, job.pipeline)}
    if job.guidance_scale is not None:
        call["guidance_scale"] = job.guidance_scale
    check_known(pipe, job.call or {})
    call |= job.call or {}
    scales = fit_scales(
        guided(pipe, reward),
        job.prompts,
        each=job.each,
        unit=job.unit,
        unknown=job.unknown,
        seed=job.seed,
        **call,
    )
    scales.save(path)
    return scales
