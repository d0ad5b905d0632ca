"""What a batch comes to: errors of policy and reference, guided where asked for, and the loss."""

from __future__ import annotations

from collections.abc import Mapping
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
from steer.tune.noising import Noising, nest, predict
from steer.tune.objectives import squared_error
from steer.tune.policy import Policy


Branch = Literal["both", "conditional"]


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
        self, model: Any, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor]
    ) -> Tensor:
        """The guided prediction, (B, *latent), at least float32.

        Args:
            model: A UNet or transformer of diffusers.
            noisy: (B, *latent).
            timesteps: (B,) as it wants them.
            text: Its further arguments by dotted name; those of `empty` have B rows.
        """
        empty = {
            name: value.to(text[name]).expand_as(text[name]) for name, value in self.empty.items()
        }
        if self.branch == "conditional":
            with torch.no_grad():
                u = predict(model, noisy, timesteps, nest({**text, **empty}))
            torch.clear_autocast_cache()  # of weights without gradients
            c = predict(model, noisy, timesteps, nest(text))
        else:
            both = {k: torch.cat([empty[k], v]) if k in empty else v for k, v in text.items()}
            twice = torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps])
            u, c = predict(model, *twice, nest(both)).chunk(2)
        u, c = wide(u), wide(c)
        return u + self.scale * (c - u)


class Losses:
    """From a batch to its outcome.

    Args:
        config: Of the run.
        accelerator: accelerate's, that prepared `model`.
        policy: The denoiser and its reference.
        model: The denoiser as it is trained.
        noising: On the accelerator's device.

    Attributes:
        guidance: Of policy and reference; None leaves predictions as they are.
    """

    def __init__(
        self, config: TuneConfig, accelerator: Any, policy: Policy, model: Any, noising: Noising
    ) -> None:
        self._goal = cast(Goal, config.objective)
        self._dtype = getattr(torch, config.base_dtype)
        self._accelerator, self._policy, self._model = accelerator, policy, model
        self._noising = noising
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
        noisy = self._noising.add_noise(x0, noise, index).to(self._dtype)
        target = self._noising.target(x0, noise, index)
        given = (noisy, self._noising.timesteps[index], text)
        old = None
        with self._accelerator.autocast():
            if self._goal.reference:
                with self._policy.reference() as model:
                    old = self._predict(model, *given)
            prediction = self._predict(self._model, *given)
        error = squared_error(prediction, target)
        labels, weights = (
            None if x is None else x.to(error) for x in (batch.labels, batch.weights)
        )
        reference = None if old is None else squared_error(old, target)
        change = None
        if old is not None and self._goal.change:
            change = squared_error(prediction, old)
        product = None
        if self._goal.product:
            winner, loser = wide(prediction - target).flatten(1).detach().chunk(2)
            product = (winner * loser).mean(1)
        return Errors(error, reference, labels, weights, change=change, product=product)

    def _predict(
        self, model: Any, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor]
    ) -> Tensor:
        if self.guidance is None:
            return predict(model, noisy, timesteps, nest(text))
        return self.guidance.predict(model, noisy, timesteps, text)
