"""How objectives that sample while they train do it: prompts, reward, steps, noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator

from steer.core.settings import Settings
from steer.core.types import Step
from steer.search.kernels.rho import Rho
from steer.tune.data.config import Count
from steer.tune.goal import Objective
from steer.tune.sampled_goals import SAMPLED, ImageReFL, PolicyGradient, RewardGradient, Sampled


_MIDDLE = Step(1, 3, torch.tensor(0.5), 0.5, 0.5, 0.7, 0.3, "flow")
"""A step in which every kernel draws noise that ever does."""


class SamplingConfig(Settings):
    """Sampling runs of every update.

    Attributes:
        prompts: As `steer tune data` takes them; all come once before one comes again. None for
            `image_refl`, whose captions are those of its images.
        reward: What is optimised; a name or a mixture, as `steer.reward` takes it.
        steps: Of a run.
        images: Of each prompt that an update has; policy gradients compare them.
        updates: That share one drawing of samples (policy gradients); each has `batch` of them.
        preset, level, noise_window: Of `steer.methods.Rho`, what noise steps draw; without a preset
            that of the objective.
        negative_prompt, call: Of the pipeline's call; `call` holds further arguments.
    """

    prompts: Any = None
    reward: str
    steps: Count
    images: Count = 1
    updates: Count = 1
    preset: str | None = None
    level: float | None = None
    noise_window: Annotated[tuple[float, float], Field(strict=False)] = (0.0, 1.0)
    negative_prompt: str = ""
    call: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("reward")
    @classmethod
    def _strip(cls, name: str) -> str:
        return name.strip()

    def kernel(self, goal: Sampled) -> Rho:
        """What moves latents from step to step.

        Raises:
            ValueError: An unknown preset, or a level or window that it does not have.
        """
        return Rho(self.preset or goal.preset, self.level, noise_window=self.noise_window)


def check_sampling(
    sampling: SamplingConfig | None,
    goal: Objective,
    batch: int,
    data: str,
    others: Mapping[str, bool],
) -> None:
    """Raise ValueError where an objective and `sampling` do not go together.

    Args:
        sampling: As configured.
        goal: Likewise.
        batch: Images per update.
        data: The dataset's folder, or empty.
        others: Whether settings are given that are of losses on noised images.
    """
    if not isinstance(goal, Sampled):
        if sampling is not None:
            raise ValueError(
                f"sampling with objective={goal.name!r}: it learns from a dataset or in rounds; "
                f"give data or rounds, or use one of {', '.join(SAMPLED)}"
            )
        return
    if sampling is None:
        raise ValueError(
            f"'sampling' is missing: objective={goal.name!r} samples while it trains; add "
            "'sampling: {prompts: ..., reward: ..., steps: 20}'"
        )
    real = isinstance(goal, RewardGradient)
    for name, given in {"data": bool(data) and not real, **others}.items():
        if given:
            raise ValueError(
                f"{name} with objective={goal.name!r}: is of datasets and rounds, and this one "
                "makes its own samples; leave it out"
            )
    if isinstance(goal, RewardGradient):
        _check_real(goal, data)
    _check_prompts(sampling, goal)
    goal.check(sampling.steps)
    kernel = sampling.kernel(goal)
    if isinstance(goal, PolicyGradient):
        _check_policy(sampling, goal, batch, kernel)
    else:
        _check_gradient(sampling, goal)


def _check_real(goal: RewardGradient, data: str) -> None:
    """Images of a dataset where they are used, and only there."""
    if isinstance(goal, ImageReFL):
        if not data:
            raise ValueError(
                f"'data' is missing: objective={goal.name!r} starts from the images of a dataset; "
                "add a line 'data: ...', or use refl"
            )
    elif goal.real and not data:
        raise ValueError(
            f"objective.real={goal.real:g} without data: it weighs the denoising error on the "
            "images of a dataset; add a line 'data: ...', or leave it out"
        )
    elif data and not goal.real:
        raise ValueError(
            f"data={data!r} with objective={goal.name!r}: makes its own samples, and its images "
            "are used by the weight of their denoising error alone; set real: 0.01 in the "
            "objective, or leave data out"
        )


def _check_prompts(sampling: SamplingConfig, goal: Sampled) -> None:
    if not isinstance(goal, ImageReFL):
        if sampling.prompts is None:
            raise ValueError("sampling: 'prompts' is missing: add a line 'prompts: ...'")
        return
    moves = {"preset": sampling.preset, "level": sampling.level}
    moves["noise_window"] = sampling.noise_window if sampling.noise_window != (0.0, 1.0) else None
    for name, given in {"prompts": sampling.prompts, **moves}.items():
        if given is not None:
            raise ValueError(
                f"sampling.{name} with objective={goal.name!r}: it takes images of data with their "
                "own captions, and no step before the trained one; leave it out"
            )


def _check_policy(sampling: SamplingConfig, goal: PolicyGradient, batch: int, kernel: Rho) -> None:
    if replace(kernel, noise_window=(0.0, 1.0)).shares(_MIDDLE).fresh == 0:
        strength = "" if kernel.level is None else f" with level={kernel.level:g}"
        raise ValueError(
            f"sampling.preset={kernel.preset!r}{strength}: draws no noise, and a deterministic "
            f"step has no density for {goal.name} to raise; use ddim, flow-sde or cps"
        )
    if sampling.images < 2:
        raise ValueError(
            f"sampling.images={sampling.images}: {goal.name} compares at least 2 images of a "
            "prompt; set images: 8"
        )
    if batch % sampling.images:
        raise ValueError(
            f"sampling.images={sampling.images}: must divide batch={batch} into whole prompts"
        )


def _check_gradient(sampling: SamplingConfig, goal: Sampled) -> None:
    for name, value in (("images", sampling.images), ("updates", sampling.updates)):
        if value > 1:
            raise ValueError(
                f"sampling.{name}={value}: {goal.name} takes every run's own gradient, once; leave "
                "it out"
            )
