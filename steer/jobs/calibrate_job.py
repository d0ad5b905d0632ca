"""What `steer calibrate` is asked to do, and doing it: plans for one pipeline and reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer.core.files.folder import check_free
from steer.core.files.text import read_json
from steer.jobs.call import check_call, check_known
from steer.jobs.reward_loader import RewardLoader, reward_parts


if TYPE_CHECKING:
    from steer.pipeline.planning.plans import Plans

PLANS, PILOTS, PAGE = "plans.json", "pilots.jsonl", "plans.html"
_LEAST = 4


@dataclass(frozen=True)
class CalibrateJob:
    """The arguments of a calibration. Bad values raise ValueError.

    Attributes:
        prompts: Drawn as those that will be served, at least 4.
        pipeline, reward, steps, guidance_scale, seed, device, dtype, lane_width, call: As in
            `SampleJob`.
        judge: A held-out reward, `"auto"` for one of another family; None lets the reward judge
            itself.
        n: Particles per prompt.
        windows, previews: What else to look at, as in `steer.calibrate`.
        scale: A file of scales that the reward is put on.
    """

    prompts: tuple[str, ...]
    pipeline: str = "shapes"
    reward: str = "shapes"
    judge: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    n: int = 16
    windows: tuple[tuple[float, float], ...] = ()
    previews: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    lane_width: int | None = None
    scale: str | None = None
    call: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.prompts) < _LEAST or not all(prompt.strip() for prompt in self.prompts):
            raise ValueError(
                f"prompts: {len(self.prompts)} of them; give {_LEAST} at least (some 32 to tell "
                "plans apart), none of them empty"
            )
        for name, least in (("n", 2), ("steps", 1), ("seed", 0), ("lane_width", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        check_call(self.call or {})
        if self.judge == "auto":
            from steer.rewards.judges import auto_judge

            object.__setattr__(self, "judge", auto_judge(self.reward))
        for text in (self.reward, *((self.judge,) if self.judge is not None else ())):
            reward_parts(text)


def check_folder(folder: Path) -> None:
    """Raise RecordError where the folder holds files of others by a calibration's names."""
    page = folder / PAGE
    taken = [] if _is_plans(folder / PLANS) else [PLANS]
    if not (page.is_file() and b"</b> calibrate" in page.read_bytes()):
        taken.append(PAGE)
    check_free(folder, taken, "steer calibrate")


def _is_plans(path: Path) -> bool:
    try:
        found = read_json(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and str(found.get("format", "")).startswith("steer-plans/")


def run_calibration(job: CalibrateJob, folder: Path, tell: Callable[[str], None]) -> Plans:
    """Sample the pilots that the folder lacks, and write plans and page.

    Args:
        job: What to do.
        folder: Where pilots, plans and page go.
        tell: Takes the line that says what it will cost.

    Raises:
        SteerError, ValueError: The pipeline, reward or device is not to be had, or the folder holds
            pilots of another calibration.
    """
    from steer.jobs.device import usable_device
    from steer.jobs.pipelines import default_steps, dtype_of, load_pipeline
    from steer.pipeline.guided import guided
    from steer.pipeline.planning.calibrate import calibrate
    from steer.rewards.parts import check_prompts

    device = usable_device(job.device)
    rewards = RewardLoader(device)
    reward = rewards.load(job.reward, job.scale)
    judge = None if job.judge is None else rewards.load(job.judge)
    for given in (reward,) if judge is None else (reward, judge):
        check_prompts(given, job.prompts)
    pipe = load_pipeline(job.pipeline, device, dtype_of(job.dtype, device, job.pipeline))
    call: dict[str, Any] = {"num_inference_steps": job.steps or default_steps(pipe, job.pipeline)}
    if job.guidance_scale is not None:
        call["guidance_scale"] = job.guidance_scale
    check_known(pipe, job.call or {})
    call |= job.call or {}
    steered = guided(pipe, reward, judge=judge, lane_width=job.lane_width)
    plans = calibrate(
        steered,
        job.prompts,
        n=job.n,
        seed=job.seed,
        windows=job.windows,
        previews=job.previews,
        out=folder / PILOTS,
        tell=tell,
        **call,
    )
    plans.save(folder / PLANS)
    plans.page(folder / PAGE)
    return plans
