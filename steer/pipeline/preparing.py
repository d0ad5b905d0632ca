"""From a call and what `guided` was given to a run: the method, the lanes, the books."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch

from steer.core.costs import ROWS, Unit
from steer.core.errors import SteerError
from steer.core.ledger import Ledger
from steer.core.trace import Trace
from steer.core.types import Reward
from steer.core.warn import warn
from steer.driver.call import Call
from steer.driver.decoding.previews import PreviewDecoder
from steer.driver.noise import Source
from steer.driver.safety import check_of
from steer.driver.seeds import call_seeds
from steer.methods.default import FEWER_STEPS
from steer.methods.selection.best_of_n import BestOfN
from steer.pipeline.arguments import COMPUTE, check_effort, is_family, reward_texts
from steer.pipeline.plan import affordable
from steer.pipeline.planning.plans import Plans
from steer.pipeline.run import Run
from steer.pipeline.weighing import Weights
from steer.pipeline.widths import Widths
from steer.search.method import Method


if TYPE_CHECKING:
    from steer.driver.denoisers.models import Models
    from steer.search.picks.base import Pick


class Settings(Protocol):
    """What a guided pipeline was given, and what its calls have taught."""

    reward: Reward
    judges: list[Reward]
    method: Method | type[Method] | None
    compute: float | None
    compute_unit: Unit
    select: Pick | None
    lane_width: int | None
    devices: tuple[torch.device, ...]
    keep_images: bool
    preview: PreviewDecoder | None
    models: Models | None
    plans: Plans | None
    widths: Widths
    weights: Weights


def prepare(
    given: Settings,
    call: Call,
    method: Method | type[Method] | None,
    compute: float | None,
    reward_prompt: Any,
    lane_width: int | None = None,
) -> Run:
    """The run of a call, checked.

    Args:
        given: Settings of the guided pipeline.
        call: The pipeline's call.
        method, compute, reward_prompt: As given to the call, instead of those settings.
        lane_width: For an attempt with another one than planned.
    """
    check_effort(method, compute)
    if method is None and (compute is None or is_family(given.method)):
        method, compute = given.method, given.compute if compute is None else compute
    family = method if is_family(method) else None
    planned, spares = None, given.widths.spares(call, given.models)
    if isinstance(method, Method):
        chosen = method
    else:
        planned = COMPUTE if compute is None else compute
        if given.plans is not None:
            given.plans.check(call.pipe, given.reward, call.steps)
        fixed = None if spares else given.lane_width
        how = (given.models, fixed, ROWS, FEWER_STEPS, given.plans, family)
        chosen = affordable(planned, call.steps, *how)  # again at the first step, with its costs
        if not spares and lane_width is None:
            lane_width = given.lane_width or 1
    devices = _devices(given, call, spares)
    if lane_width is None:
        how = (spares, given.lane_width, max(len(devices), 1))
        lane_width = given.widths.width(call, chosen, *how)
    lane_width = given.widths.check(call, lane_width)
    devices = devices[: -(-chosen.widest // lane_width)]  # no more than have a lane
    devices = devices if len(devices) > 1 else ()
    width = lane_width * max(len(devices), 1)
    seeds = call_seeds(call.generator, call.prompts, call.images, call.device)
    return Run(
        pipe=call.pipe,
        texts=reward_texts(call, [given.reward, *given.judges], reward_prompt),
        images=call.images,
        reward=given.reward,
        judges=given.judges,
        method=chosen,
        select=given.select,
        source=Source(
            call.pipe,
            prompts=call.prompts,
            images=call.images,
            lane_width=width,
            seeds=seeds,
            generator=call.generator,
            device=call.device,
        ),
        seed=seeds[0],
        lane_width=lane_width,
        devices=devices,
        checked=given.widths.checked if spares and _has_gaps(call, chosen, width) else None,
        values=call.values,
        latent=call.latent_output,
        check=check_of(call.pipe, call.output_type),
        steps=call.steps,
        planned=planned,
        family=family,
        unit=given.compute_unit,
        plans=given.plans,
        weights=given.weights,
        previewer=given.preview,
        models=given.models,
        ledger=Ledger(cfg_rows=call.guidance_rows),
        trace=Trace(keep_images=given.keep_images),
    )


def prepare_recalls(
    given: Settings, call: Call, first: Run, reward_prompt: Any, error: SteerError, known: bool
) -> Run:
    """A run that calls the pipeline again for every particle; raises `error` where none can.

    `known` is whether that was told before: else there is a warning.
    """
    method = first.method
    if first.planned is not None and first.family is None:
        method = BestOfN(max(1, math.floor(first.planned)))
    if method.needs_loop:
        raise error
    if given.models is not None:
        raise type(error)(
            f"tuned and blend sit in the pipeline's loop: {error}; load the tuned weights into the "
            "pipeline"
        ) from error
    if not known:
        warn(f"every particle is a call of the pipeline, since no search fits: {error}", 5)
    run = prepare(given, call, method, None, reward_prompt, 1)
    run.progress.on_step = first.progress.on_step
    return run


def _devices(given: Settings, call: Call, spares: bool) -> tuple[torch.device, ...]:
    """Where lanes are denoised at the same time; empty for the pipeline's own device alone."""
    if given.devices and given.models is not None:
        raise ValueError(
            "devices beside tuned or blend: only the pipeline's own denoiser is copied to other "
            "devices; load the tuned weights into the pipeline, or leave devices out"
        )
    return given.widths.devices(call, spares, given.devices)


def _has_gaps(call: Call, method: Method, lane_width: int) -> bool:
    """Whether lanes may have slots that no row needs; where rows go their own ways, also those of
    one particle for each of several images."""
    return lane_width > 1 or (method.reorders and call.prompts * call.images > 1)
