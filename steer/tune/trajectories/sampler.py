"""A pipeline's sampling run opened up for training: features, start, noise, denoiser, decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from steer.core.errors import TuneError
from steer.core.seeds import row_seed
from steer.core.transition import mixed
from steer.core.types import Move, Step
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.decode import decode
from steer.driver.facts import makes_videos
from steer.driver.grid import Schedule
from steer.search.short_runs import Grid, short_grid
from steer.tune.backprop import Denoise
from steer.tune.config import TuneConfig
from steer.tune.data.features import Features
from steer.tune.dataset import Dataset
from steer.tune.losses import Guidance
from steer.tune.noising import denoiser, input_level, nest, predict, scale_of
from steer.tune.sampled_goals import Sampled
from steer.tune.sampling_config import SamplingConfig


class Sampler:
    """What a training step needs of a pipeline's run. The pipeline's own call is never made whole.

    Args:
        config: With `sampling`.
        pipe: On its device.
        prompts: Of the run, at least one.

    Attributes:
        grid: The steps of the pipeline's scheduler, each leading to the next.
        kernel: What moves latents from one to the next.
        guidance: Of predictions; None leaves them as they are.
        dtype: In which the denoiser is asked.

    Raises:
        TuneError: A pipeline of videos, guidance that does not fit, or no step that draws noise
            where the objective needs one.
        UnsupportedPipelineError: Text features that cannot be taken from it.
        UnsupportedSchedulerError: A scheduler whose noise levels cannot be read.
    """

    def __init__(self, config: TuneConfig, pipe: Any, prompts: Sequence[str]) -> None:
        assert config.sampling is not None and isinstance(config.objective, Sampled)
        if makes_videos(pipe):
            raise TuneError(
                f"pipeline={type(pipe).__name__}: makes videos, whose runs are too long to be "
                f"looked into; use nft or awm in rounds instead of {config.objective.name}"
            )
        self._pipe, self._model = pipe, denoiser(pipe)[1]
        self.dtype = getattr(torch, config.base_dtype)
        arguments = _arguments(config, config.sampling, self._model)
        self._asked = Asked({**config.sampling.call})
        first = prompts[0]
        other = prompts[1] if len(prompts) > 1 else f"not {first}"
        self._probe = (first, other)
        self._features = Features(pipe, arguments, self._probe)
        self.guidance = _guidance(config, self._features)
        self._scale = scale_of(pipe, config.timestep_scale)
        self._size = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
        self.grid: Grid = short_grid(Schedule.from_scheduler(pipe.scheduler), None)
        self.kernel = config.sampling.kernel(config.objective)

    @property
    def noisy(self) -> tuple[int, ...]:
        """Positions in the grid whose steps draw noise."""
        found = [self.kernel.shares(step).fresh * step.sigma_next for step in self.grid]
        return tuple(i for i, std in enumerate(found) if std > 0)

    def text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The denoiser's further arguments by dotted name, on its device; rows are prompts."""
        with torch.no_grad():
            found = {**self._features(list(prompts)), **self._features.layout.shared}
        return {name: self._placed(value) for name, value in found.items()}

    def repeat(self, text: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
        """The arguments with every row so many times, one by one."""
        rows = self._features.layout.names
        return {k: v.repeat_interleave(times, 0) if k in rows else v for k, v in text.items()}

    def part(self, text: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
        """The arguments of some of the rows."""
        names = self._features.layout.names
        return {k: v[rows] if k in names else v for k, v in text.items()}

    def check(self, data: Dataset, decoded: bool = False) -> None:
        """Raise TuneError unless a dataset is laid out as the pipeline's calls are.

        Args:
            data: Whose text features the denoiser will be given.
            decoded: Whether its latents will be decoded as those of the calls are.
        """
        found = {name: tuple(value.shape[1:]) for name, value in data.text([0]).items()}
        own = {name: tuple(value.shape[1:]) for name, value in self._features(self._probe).items()}
        for what, has, wanted in (
            ("text features", dict(sorted(found.items())), dict(sorted(own.items()))),
            ("latents", data.latent_shape, self._features.latent_shape if decoded else None),
        ):
            if wanted is not None and has != wanted:
                raise TuneError(
                    f"data={str(data.folder)!r}: has {what} of shape {has}, and the calls of "
                    f"sampling {wanted}; make it with the pipeline that is tuned and the same call"
                )

    def start(self, seeds: Sequence[int]) -> Tensor:
        """Initial latents of rows by their seeds, `(B, *latent)` float32."""
        return self._size * self.noise(seeds, -1)

    def noise(self, seeds: Sequence[int], position: int) -> Tensor:
        """The noise of a step (-1: the first latents) of rows by their seeds, `(B, *latent)`."""
        shape, device = self._features.latent_shape, self._model.device
        rows = [
            torch.randn(shape, generator=torch.Generator().manual_seed(row_seed(seed, position)))
            for seed in seeds
        ]
        return torch.stack(rows).to(device)

    def move(self, position: int, step: Step, x: Tensor, x0: Tensor) -> Move:
        """How a step goes on; see `steer.tune.backprop.Mover`."""
        return mixed(step, x, x0, *self.kernel.shares(step))

    def denoiser(self, model: Any, text: Mapping[str, Tensor], recompute: bool = False) -> Denoise:
        """A model with a batch's features as a function of latents and step, guided.

        Args:
            model: The denoiser, or its reference.
            text: From `text`.
            recompute: Hold no graph of a call, and make it again on the way back.
        """

        def ask(x: Tensor, step: Step) -> Tensor:
            time = (step.t * self._scale).to(x.device).expand(len(x))
            noisy = (x / input_level(step)).to(self.dtype)
            if self.guidance is None:
                return _ask(model, noisy, time, text)
            return self.guidance.predict(_ask, model, noisy, time, text)

        def again(x: Tensor, step: Step) -> Tensor:
            if not torch.is_grad_enabled():
                return ask(x, step)
            found: Any = checkpoint(ask, x, step, use_reentrant=False)
            return found

        return again if recompute else ask

    def images(self, clean: Tensor, grad: bool = False) -> Tensor:
        """`(B, 3, H, W)` float32 in [0, 1]."""
        return decode(self._pipe, clean.to(self.dtype), grad=grad, asked=self._asked)

    def _placed(self, value: Tensor) -> Tensor:
        dtype = self.dtype if value.is_floating_point() else value.dtype
        return value.to(self._model.device, dtype)


def _arguments(config: TuneConfig, sampling: SamplingConfig, model: Any) -> dict[str, Any]:
    """Of the pipeline's call, but for prompts and generators."""
    told = bool(getattr(model.config, "guidance_embeds", False))
    if "guidance_scale" in sampling.call and not told:
        raise TuneError(
            f"sampling.call.guidance_scale={sampling.call['guidance_scale']!r}: the loss has to "
            "know it; write guidance_scale beside sampling"
        )
    if config.guidance_scale is not None and told:
        raise TuneError(
            f"guidance_scale={config.guidance_scale:g}: {type(model).__name__} is told its "
            "guidance as an input; write it into sampling.call"
        )
    given = {"num_inference_steps": sampling.steps, "negative_prompt": sampling.negative_prompt}
    if not told:
        given["guidance_scale"] = config.guidance_scale or 1.0
    return {**{k: v for k, v in given.items() if v != ""}, **sampling.call}


def _ask(model: Any, noisy: Tensor, time: Tensor, text: Mapping[str, Tensor]) -> Tensor:
    return predict(model, noisy, time, nest(text))


def _guidance(config: TuneConfig, features: Features) -> Guidance | None:
    if config.guidance_scale is None:
        return None
    if features.unconditional is None:
        raise TuneError(
            f"guidance_scale={config.guidance_scale:g}: the pipeline's calls have no features of "
            "the empty prompt; leave it out"
        )
    branch = config.guided_branch or "both"
    return Guidance(config.guidance_scale, branch, features.unconditional)
