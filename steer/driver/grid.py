"""The noise schedule of a pipeline's run as `Step`s: alpha and sigma, read off any scheduler."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from steer.core.errors import UnsupportedSchedulerError
from steer.core.types import Prediction, Step


_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
    "original_sample": "sample",
    "flow_prediction": "flow",
}


@dataclass(frozen=True, eq=False)
class Schedule(Sequence[Step]):
    """An immutable sequence of `Step`s, one per call of the denoiser in the plain pipeline.

    Attributes:
        steps: The steps, in the pipeline's order.
        offset: Where the first step lies in the scheduler's own timesteps; not 0 when the pipeline
            runs only a part of them (image-to-image, `denoising_start`).
    """

    steps: tuple[Step, ...]
    offset: int = 0

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        return self.steps[index]

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def from_scheduler(cls, scheduler: Any, timesteps: Tensor | None = None) -> Schedule:
        """Read the noise schedule of a diffusers scheduler after `set_timesteps`.

        The scheduler is not changed: alpha and sigma are measured on a copy, on the CPU, in
        float64. They are those of the latents in the pipeline's loop, so variance-exploding
        schedulers (the Euler family) have alpha = 1. At a repeated timestep (Heun, PNDM, KDPM2)
        each visit is a step of its own, with alpha and sigma of the latents that the denoiser gets.

        The last step leads to what the scheduler calls clean data: (1, 0) or, with
        `set_alpha_to_one=False` or `final_sigmas_type="sigma_min"`, the smallest noise level. Every
        other step leads to the next timestep; diffusers' DDIM itself lands a few training steps
        beside it when the spacing is uneven (1000 not divisible by the count).

        Args:
            scheduler: A diffusers scheduler.
            timesteps: The timesteps that the pipeline runs, `(count,)`, when it runs only a
                contiguous part of `scheduler.timesteps`.

        Raises:
            UnsupportedSchedulerError: Prediction kind or noise levels cannot be read.
        """
        prediction = prediction_of(scheduler)
        own = scheduler.timesteps
        asked = _values(own if timesteps is None else timesteps)
        offset = _find(_values(own), asked, scheduler)
        points = _points(scheduler)[offset:]
        count = len(asked)
        steps = tuple(
            Step(i, count, own[offset + i], *points[i], *points[i + 1], prediction)
            for i in range(count)
        )
        return cls(steps, offset)


def prediction_of(scheduler: Any) -> Prediction:
    """What the denoiser's output means, from the scheduler's config.

    Raises:
        UnsupportedSchedulerError: Not one of epsilon, v_prediction, sample, flow, or preconditioned
            by the scheduler itself (EDM).
    """
    name = type(scheduler).__name__
    if hasattr(scheduler, "precondition_outputs"):
        raise UnsupportedSchedulerError(
            f"{name} preconditions the model output itself (EDM), which steer cannot read; use "
            "EulerDiscreteScheduler or DPMSolverMultistepScheduler where the model allows it."
        )
    if getattr(scheduler.config, "invert_sigmas", False):
        raise UnsupportedSchedulerError(
            f"{name} with invert_sigmas=True runs its noise levels upwards, which steer cannot "
            "read; use invert_sigmas=False where the model allows it."
        )
    if getattr(scheduler.config, "mask_token_id", None) is not None:
        raise UnsupportedSchedulerError(
            f"{name} unmasks tokens, so its loop has no latents between noise and image"
        )
    kind = getattr(scheduler.config, "prediction_type", None)
    if kind is None and _named(scheduler, "FlowMatch", "FlowMap", "LTXEulerAncestralRF"):
        return "flow"
    if kind not in _PREDICTIONS:
        known = ", ".join(_PREDICTIONS)
        raise UnsupportedSchedulerError(
            f"{name}: prediction_type={kind!r} is unknown to steer (known: {known})."
        )
    return _PREDICTIONS[kind]


def _named(scheduler: Any, *prefixes: str) -> bool:
    """Whether the name of the scheduler's class, or of a base class, has one of the prefixes."""
    return any(c.__name__.startswith(prefixes) for c in scheduler.__class__.__mro__)


def _values(timesteps: Tensor) -> list[float]:
    return timesteps.detach().as_subclass(Tensor).cpu().tolist()


def _find(own: list[float], asked: list[float], scheduler: Any) -> int:
    """Position of `asked` in `own`, searched from the end: image-to-image runs the last part."""
    for offset in range(len(own) - len(asked), -1, -1):
        if own[offset : offset + len(asked)] == asked:
            return offset
    raise UnsupportedSchedulerError(
        f"the pipeline's {len(asked)} timesteps are not a contiguous part of the "
        f"{len(own)} timesteps of {type(scheduler).__name__}."
    )


def _points(scheduler: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) at every timestep and, last, at the end of the run."""
    probe = copy.copy(scheduler)
    count = len(probe.timesteps)
    sigmas = getattr(probe, "sigmas", None)
    if not isinstance(sigmas, Tensor) or sigmas.numel() <= count:
        grid = [_probe(probe, t) for t in probe.timesteps.cpu()]
        return [*grid, _end(probe)]
    levels = sigmas.detach().cpu().double()
    if hasattr(probe, "_sigma_to_alpha_sigma_t"):  # DPM++, UniPC, DEIS, SA: one map for all
        alpha, sigma = probe._sigma_to_alpha_sigma_t(levels[: count + 1])
        return list(zip(alpha.tolist(), sigma.tolist(), strict=True))
    if _named(probe, "LTXEulerAncestralRF", "FlowMap"):  # flows that noise nothing by position
        return [(1 - level, level) for level in levels[: count + 1].tolist()]
    times = probe.timesteps.cpu()
    grid = [_probe(probe, times[min(i, count - 1)], i) for i in range(count + 1)]
    for i, level in _between(probe, levels, count).items():
        grid[i] = (grid[i][0], level)
    return grid


def _probe(probe: Any, t: Tensor, index: int | None = None) -> tuple[float, float]:
    """(alpha, sigma) by `add_noise`: of data 1 with noise 0, and of data 0 with noise 1."""
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    if index is not None:  # schedulers that keep a list of sigmas look it up by position
        probe._begin_index, probe._step_index = index, None
    elif t.is_floating_point():  # the others index a table by timestep
        t = t.long()
    if hasattr(probe, "scale_noise"):
        noisy = probe.scale_noise(one, t[None], one.flip(1))
    elif hasattr(probe, "add_noise"):
        noisy = probe.add_noise(one, one.flip(1), t[None])
    else:
        raise UnsupportedSchedulerError(
            f"{type(probe).__name__} has neither add_noise nor scale_noise, so its noise levels "
            "cannot be read."
        )
    alpha, sigma = noisy[0].tolist()
    return alpha, sigma


def _end(probe: Any) -> tuple[float, float]:
    """The point after the last step of a scheduler that keeps a table of alphas."""
    final = getattr(probe, "final_alpha_cumprod", None)
    if final is None or _named(probe, "LCM"):  # DDPM, LCM: clean data
        return 1.0, 0.0
    if _named(probe, "TCD"):  # ends at timestep 0
        return _probe(probe, torch.tensor(0))
    last = int(probe.timesteps[-1])
    following = last - probe.config.num_train_timesteps // probe.num_inference_steps
    if following >= 0:
        return _probe(probe, torch.tensor(following))
    clean = float(final)
    return clean**0.5, (1 - clean) ** 0.5


def _between(probe: Any, levels: Tensor, count: int) -> dict[int, float]:
    """Sigmas of second-order solvers that call the denoiser between two points."""
    odd = range(1, count, 2)
    if hasattr(probe, "sigmas_interpol"):  # KDPM2, ancestral or not
        inner = probe.sigmas_interpol.detach().cpu().double()
        shift = 1 if hasattr(probe, "sigmas_up") else 0
        return {i: float(inner[i - shift]) for i in odd}
    if hasattr(probe, "mid_point_sigma"):  # DPMSolverSDE: halfway in log sigma
        return {i: float((levels[i - 1] * levels[i]) ** 0.5) for i in odd}
    return {}
