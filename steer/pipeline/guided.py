"""`guided(pipe, reward)`: a diffusers pipeline that spends extra compute on better images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from steer.core.costs import Unit
from steer.core.errors import (
    SteerError,
    UnsupportedPipelineError,
    UnsupportedSchedulerError,
)
from steer.driver.call import Call
from steer.driver.windows import warn_of_cut_prompts
from steer.pipeline import attempts
from steer.pipeline.arguments import COMPUTE, check_grad_mode, fitting
from steer.pipeline.memory import Randomness
from steer.pipeline.planning.plans import Plans
from steer.pipeline.preparing import prepare, prepare_recalls
from steer.pipeline.progress import Progress
from steer.pipeline.recall import recall
from steer.pipeline.report.call import Report
from steer.pipeline.result import finish
from steer.pipeline.run import Run
from steer.pipeline.turns import turn
from steer.pipeline.weighing import Weights
from steer.pipeline.widths import Widths
from steer.rewards.families import warn_of_kin
from steer.search.method import Method


if TYPE_CHECKING:
    from steer.driver.denoisers.blend import Blend
    from steer.driver.denoisers.models import Models
    from steer.search.picks.base import Pick


class Guided:
    """A pipeline with a search in its loop: call it as the pipeline, read it as the pipeline.

    Attributes that it does not have itself are the pipeline's (`guided.unet`,
    `guided.enable_model_cpu_offload()`); assigning to them assigns to the pipeline. Its own are
    checked and resolved where they are assigned, as `guided` does it.

    Attributes:
        pipe: The pipeline.
        reward, method, compute, select, judges, ...: As given to `guided`.
        preview: The decoder of previews; `None` for the pipeline's own.
        widths, weights: What its calls have taught about batches, and about costs.
        models: Tuned and untuned denoisers and their blend; `None` without `tuned` and `blend`.
        report: Of the latest call, also where that returned a tuple.
    """

    _own = (
        frozenset(("pipe", "reward", "method", "compute", "compute_unit", "select", "judges"))
        | {"lane_width", "devices", "keep_images", "preview", "plans", "models", "report", "widths"}
        | {"weights", "_refused"}
    )

    def __init__(
        self,
        pipe: Any,
        reward: Any,
        *,
        method: Method | type[Method] | None = None,
        compute: float | None = None,
        select: Pick | None = None,
        judge: Any = None,
        compute_unit: Unit = "flops",
        lane_width: int | None = None,
        devices: Sequence[str | torch.device] | None = None,
        keep_images: bool = False,
        preview: Any = None,
        tuned: Any = None,
        blend: Blend | str | None = None,
        plans: Plans | str | Path | None = None,
    ) -> None:
        self.pipe: Any = pipe.pipe if isinstance(pipe, Guided) else pipe
        self.reward, self.judges = reward, judge
        self.method, self.compute, self.select = method, compute, select
        self.compute_unit: Unit = compute_unit
        self.plans: Any = plans
        self.report: Report | None = None
        self.lane_width, self.keep_images = lane_width, keep_images
        planned = self.plans.preview if self.plans is not None else ""
        self.preview = planned or None if preview is None else preview
        self.devices: Any = devices
        self.widths, self.weights = Widths(), Weights()  # what calls have taught
        self._refused: dict[tuple[type, type], str] = {}  # whose loop no search can sit in
        self.models: Models | None = None
        if tuned is not None or blend is not None:
            from steer.driver.denoisers.models import models_for

            self.models = models_for(self.pipe, tuned, blend)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "pipe" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own:
            object.__setattr__(self, name, fitting(name, value, self.__dict__))
        else:
            setattr(self.pipe, name, value)

    def __repr__(self) -> str:
        effort = self.method if self.method is not None else f"compute={self.compute or COMPUTE:g}"
        return f"Guided({type(self.pipe).__name__}, {self.reward.name!r}, {effort})"

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self.pipe)})

    def to(self, *args: Any, **kwargs: Any) -> Guided:
        """`pipe.to(...)`; returns the guided pipeline."""
        self.pipe.to(*args, **kwargs)
        return self

    def __call__(
        self,
        *args: Any,
        method: Method | type[Method] | None = None,
        compute: float | None = None,
        reward_prompt: str | Sequence[str] | None = None,
        on_step: Callable[[Progress], None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The pipeline's call; its arguments, its output class, and a search in its loop.

        Args:
            *args, **kwargs: The pipeline's own.
            method, compute: For this call instead of those given to `guided`.
            reward_prompt: What the reward reads instead of the prompt; needed where the call gives
                `prompt_embeds` without text.
            on_step: Called with a `Progress` after every denoiser call (the best reward so far,
                what is left, the trace); `progress.stop()` ends the call with the best so far.

        Returns:
            The pipeline's output (a tuple with `return_dict=False`) with `rewards` (one float per
            image), `accepted` (one bool per image) and `report` (a `Report`) on it. Candidates
            that the pipeline's safety checker flags lose to all others; where nothing else is
            left, the reward is that of what is returned (a black image), with `accepted=False`
            and a warning.

        Raises:
            SteerError: Under `torch.inference_mode`; a loop that cannot be driven
                (`UnsupportedPipelineError`), a scheduler that cannot (`UnsupportedSchedulerError`),
                a reward that is not one finite score per image (`RewardError`), nothing above a
                gate's threshold where it was asked to raise (`NotAcceptedError`), memory that is
                short with half the lane too (`OutOfMemoryError`).
            ValueError: Arguments out of range; the message names them.

        What a reward raises goes through, with a note of prompt, particle and step. Calls from
        several threads take turns; one from inside another (a reward's own) raises SteerError.
        """
        check_grad_mode()
        with turn(self.pipe):
            call = Call(self.pipe, args, kwargs)
            return self._call(call, method, compute, reward_prompt, on_step)

    def _call(
        self, call: Call, method: Any, compute: float | None, reward_prompt: Any, on_step: Any
    ) -> Any:
        start = time.perf_counter()
        warn_of_cut_prompts(call)
        before = Randomness.of(call.generator, call.device)

        def again(run: Run, lane_width: int | None) -> Run:
            before.restore()
            anew = lane_width is None and run.planned is not None
            effort = (run.family, run.planned) if anew else (run.method, None)
            narrow = prepare(self, call, *effort, reward_prompt, lane_width)
            narrow.planned = None if run.context is not None else run.planned
            narrow.family, narrow.progress.on_step = run.family, on_step
            return narrow

        first = prepare(self, call, method, compute, reward_prompt)
        first.progress.on_step = on_step
        try:
            run, output, self.report = self._search(call, first, again, start)
        except (UnsupportedPipelineError, UnsupportedSchedulerError) as error:
            before.restore()
            run = self._recalled(call, first, reward_prompt, error)
            output, self.report = finish(run, recall(call, run), call.latent_output, start)
            run.ledger.add(first.ledger)
        return call.returned(output)

    def _search(
        self, call: Call, run: Run, again: Callable[[Run, int | None], Run], start: float
    ) -> tuple[Run, Any, Report]:
        """A search in the loop, as far as one can sit there."""
        known = self._refused.get(_kind(call))
        if known is not None and not run.method.needs_loop:
            raise UnsupportedPipelineError(known)
        run, output, ended, failed = attempts.search(call, run, again, self.widths)
        output, report = finish(run, output, call.latent_output, start, interrupted=not ended)
        for other in failed:
            run.ledger.add(other.ledger)
        return run, output, report

    def _recalled(self, call: Call, first: Run, reward_prompt: Any, error: SteerError) -> Run:
        """A run that calls the pipeline again for every particle; raises `error` where none can."""
        known = _kind(call) in self._refused
        run = prepare_recalls(self, call, first, reward_prompt, error, known)
        if first.ledger.denoiser_calls > 1:  # it took some calls to see: do not try again
            self._refused[_kind(call)] = str(error)
        return run


def _kind(call: Call) -> tuple[type, type]:
    return type(call.pipe), type(getattr(call.pipe, "scheduler", None))


def guided(
    pipe: Any,
    reward: Any,
    *,
    method: Method | type[Method] | None = None,
    compute: float | None = None,
    select: Pick | None = None,
    judge: Any = None,
    compute_unit: Unit = "flops",
    lane_width: int | None = None,
    devices: Sequence[str | torch.device] | None = None,
    keep_images: bool = False,
    preview: Any = None,
    tuned: Any = None,
    blend: Blend | str | None = None,
    plans: Plans | str | Path | None = None,
) -> Guided:
    """Wrap a diffusers pipeline so that its calls search for images with a higher reward.

    Args:
        pipe: Any diffusers pipeline whose loop iterates over its scheduler's timesteps. It is left
            as it is; only for the time of a call does a search sit in `pipe.scheduler`.
        reward: What to maximise: a name (`steer.available_rewards()`), a function
            `(images, prompts) -> (B,)`, a dict of weights, or a `Reward`.
        method: How to search, such as `BestOfN(4)`; chosen by `compute` if left out. A class, such
            as `Guide`, is made as large as `compute` pays for.
        compute: What to spend at most, in plain calls with their decode (default 4).
        select: Which finished candidates are returned, such as `steer.picks.Quantile(n_eff=8)`, or
            `steer.picks.Diverse()` for several different images; the best if left out.
        judge: One or more further rewards that nobody optimises, for the report. One that shares
            its backbone or training data with the reward is warned of; `"auto"` is one that shares
            neither, and may be downloaded (`steer.rewards.judges.auto_judge`).
        compute_unit: What `compute` counts: `"flops"`, which torch counts once per pipeline and
            size (denoiser, decodes, scores, gradients), or denoiser `"rows"` alone, as papers do.
        lane_width: Particles per returned image in one denoiser call; by default such that a lane
            has at most 8 rows (or those of the call itself) and memory has sufficed for it before.
            Results do not depend on it. Where each of several prompts has its own image, mask or
            the like, it is 1.
        devices: Where particles are denoised at the same time, such as `["cuda:0", "cuda:1"]`, the
            pipeline's own device first; by default there alone. For the time of a call the others
            hold a copy of the denoiser. Equal results for one `lane_width`, which is per device.
        keep_images: Keep small previews in the trace.
        preview: What decodes x0 previews and the ends of short runs: the pipeline's own VAE ("vae"
            or None), the tiny autoencoder of its latents ("tiny"), a linear map ("linear"), a
            folder or hub id of an AutoencoderTiny, or a torch module with `decode`. Finished images
            are always decoded by the pipeline's own.
        tuned: A tuned denoiser in place of the pipeline's, or beside it (`blend`): a name of
            `steer tuned` such as "dpo-sd15", a hub id, a folder or file of safetensors (a denoiser,
            a pipeline, a LoRA), a `steer.denoisers.Checkpoint`, or a torch module.
        blend: How tuned and untuned denoisers combine, such as `steer.RLG(2.0)`; the tuned one
            alone if left out. `compute` goes on counting plain calls of the base.
        plans: What a bare `compute` stands for, as `steer.calibrate` learnt it, or the path of such
            a file; the default otherwise. For the pipeline, reward and number of steps that it was
            calibrated with; its decoder of previews is taken where `preview` is None.

    Returns:
        A `Guided`: call it with the pipeline's own arguments.

    Raises:
        UnsupportedPipelineError: Not a pipeline with a scheduler.
        CheckpointError: A tuned denoiser that is not found, is a pickle, or does not fit; a tiny
            autoencoder that cannot be loaded.
        PlansError: Plans that cannot be read, or were made for another pipeline or reward.
        ValueError: Unknown reward, `compute` below 1, `compute` beside a method, a `lane_width`
            below 1, unknown `devices`, a blend without its denoiser, an unfitting `preview`.
    """
    made = Guided(
        pipe,
        reward,
        method=method,
        compute=compute,
        select=select,
        judge=judge,
        compute_unit=compute_unit,
        lane_width=lane_width,
        devices=devices,
        keep_images=keep_images,
        preview=preview,
        tuned=tuned,
        blend=blend,
        plans=plans,
    )
    for given in made.judges:
        warn_of_kin(made.reward, given)
    return made
