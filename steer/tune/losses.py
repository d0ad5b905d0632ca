"""What a batch comes to: errors of policy and reference, guided where asked for, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.types import wide
from steer.tune.config import TuneConfig
from steer.tune.dataset import Dataset
from steer.tune.goal import Errors, Goal, Outcome
from steer.tune.loader import Batch, to_device
from steer.tune.noising import Noising
from steer.tune.policy import Policy
from steer.tune.process import Process


Branch = Literal["both", "conditional"]
Ask = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of predictions: u + scale (c - u) (arXiv:2207.12598).

    Attributes:
        scale: Of the guidance; 1 would be none.
        branch: What gradients reach: `"both"`, or `"conditional"` (c alone).
        empty: The empty (or negative) prompt's features by denoiser argument, (1, ...) each.
    """

    scale: float
    branch: Branch
    empty: Mapping[str, Tensor]

    @classmethod
    def of(cls, config: TuneConfig, data: Dataset, model: Any) -> Guidance | None:
        """What a configuration asks for; None without `guidance_scale`.

        Raises:
            TuneError: The denoiser takes its guidance as an input, or the dataset has no features
                of the empty prompt.
        """
        if config.guidance_scale is None:
            return None
        if getattr(model.config, "guidance_embeds", False):
            raise TuneError(
                f"guidance_scale={config.guidance_scale:g}: {type(model).__name__} is told its "
                f"guidance as an input (the dataset's: {data.manifest.get('guidance')}), so every "
                "prediction is guided already; leave guidance_scale out"
            )
        if not data.has_uncond:
            raise TuneError(
                f"guidance_scale={config.guidance_scale:g}: {str(data.folder)!r} was made without "
                "guidance and has no features of the empty prompt; make it with a guidance_scale "
                "above 1, or leave guidance_scale out of the training"
            )
        return cls(config.guidance_scale, config.guided_branch or "both", data.uncond)

    def predict(
        self, ask: Ask, model: Any, noisy: Tensor, at: Tensor, text: Mapping[str, Tensor]
    ) -> Tensor:
        """The guided prediction, (B, *latent), at least float32.

        Args:
            ask: Gives the prediction of a model from these four.
            model: A UNet or transformer of diffusers.
            noisy: (B, *latent).
            at: (B,) the timestep of every row, or what `ask` takes for it.
            text: Its further arguments by dotted name; those of `empty` have B rows.
        """
        empty = {
            name: value.to(text[name]).expand_as(text[name]) for name, value in self.empty.items()
        }
        if self.branch == "conditional":
            with torch.no_grad():
                u = ask(model, noisy, at, {**text, **empty})
            torch.clear_autocast_cache()  # of weights without gradients
            c = ask(model, noisy, at, text)
        else:
            both = {k: torch.cat([empty[k], v]) if k in empty else v for k, v in text.items()}
            twice = torch.cat([noisy, noisy]), torch.cat([at, at])
            u, c = ask(model, *twice, both).chunk(2)
        u, c = wide(u), wide(c)
        return u + self.scale * (c - u)


class Losses:
    """From a batch to its outcome.

    Args:
        config: Of the run.
        accelerator: accelerate's, that prepared `model`.
        policy: The denoiser and its reference.
        model: The denoiser as it is trained.
        process: On the accelerator's device.

    Attributes:
        guidance: Of policy and reference; None leaves predictions as they are.
    """

    def __init__(
        self, config: TuneConfig, accelerator: Any, policy: Policy, model: Any, process: Process
    ) -> None:
        self._goal = cast(Goal, config.objective)
        self._dtype = getattr(torch, config.base_dtype)
        self._accelerator, self._policy, self._model = accelerator, policy, model
        self._process = process
        self.guidance: Guidance | None = None

    def __call__(self, batch: Batch) -> Outcome:
        """The loss of every row, with gradients to the policy."""
        errors = self.errors(batch)
        baseline = self._goal.baseline(errors)
        if baseline is not None:
            errors = replace(errors, baseline=self.mean(baseline))
        return self._goal.loss(errors)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        return cast(Tensor, self._accelerator.reduce(values, reduction="mean"))

    def errors(self, batch: Batch) -> Errors:
        """The denoising errors of every row, with gradients to the policy."""
        x0, text, noise, index = to_device(batch, self._accelerator.device, self._dtype)
        process, drawn = self._process, (noise, index)
        noisy = process.add_noise(x0, *drawn)
        if noisy.is_floating_point():
            noisy = noisy.to(self._dtype)
        given = (noisy, index, text)
        old = None
        with self._accelerator.autocast():
            if self._goal.reference:
                with self._policy.reference() as model:
                    old = self._predict(model, *given)
            prediction = self._predict(self._model, *given)
        error = process.error(prediction, x0, *drawn)
        labels, weights = (
            None if x is None else x.to(error) for x in (batch.labels, batch.weights)
        )
        reference = None if old is None else process.error(old, x0, *drawn)
        change = None
        if old is not None and self._goal.change:
            change = process.change(prediction, old, *drawn)
        product = None
        if self._goal.product:
            assert isinstance(process, Noising)  # the only one that such objectives are allowed
            away = prediction - process.target(x0, *drawn)
            winner, loser = wide(away).flatten(1).detach().chunk(2)
            product = (winner * loser).mean(1)
        return Errors(error, reference, labels, weights, change=change, product=product)

    def _predict(
        self, model: Any, noisy: Tensor, index: Tensor, text: Mapping[str, Tensor]
    ) -> Tensor:
        if self.guidance is None:
            return self._process.predict(model, noisy, index, text)
        return self.guidance.predict(self._process.predict, model, noisy, index, text)
