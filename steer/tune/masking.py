"""The forward process of masked generators (Amused): tokens are hidden, and guessed.

MaskGIT (arXiv:2202.04200) draws a share, hides so many tokens of an image at random places, and
trains the likelihood of what is hidden. aMUSEd (arXiv:2401.01808) is trained and sampled so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.errors import TuneError
from steer.core.types import wide
from steer.tune.dataset import Dataset
from steer.tune.goal import Goal, Objective
from steer.tune.noising import nest
from steer.tune.objectives import mean_over


GRID = 1000
"""Shares in the grid."""
_LOOKED_AT = 256
"""Images of a dataset whose tokens are looked at."""
_SHARES = {"cosine": lambda time: torch.cos(time * math.pi / 2), "linear": lambda time: 1 - time}
"""Shares of hidden tokens by time in (0, 1), for every `masking_schedule` of AmusedScheduler."""


@dataclass(frozen=True)
class Masking:
    """Some of an image's tokens replaced by the mask.

    Attributes:
        token: What stands for a hidden token.
        shares: (T,) shares of hidden tokens, in (0, 1), float32.
    """

    token: int
    shares: Tensor

    @classmethod
    def of(cls, pipe: Any) -> Masking:
        """As the pipeline's scheduler unmasks.

        Raises:
            TuneError: An unknown schedule of masks.
        """
        config = pipe.scheduler.config
        name = config.get("masking_schedule", "cosine")
        if name not in _SHARES:
            raise TuneError(
                f"masking_schedule={name!r} of {type(pipe.scheduler).__name__}: unknown; steer "
                f"trains {' and '.join(_SHARES)}"
            )
        time = (torch.arange(GRID) + 0.5) / GRID
        return cls(int(config["mask_token_id"]), _SHARES[name](time))

    def __len__(self) -> int:
        return len(self.shares)

    def between(self, low: float, high: float) -> Masking:
        """The part of the grid between two shares of it: 0 hides the least, 1 the most.

        Raises:
            TuneError: Nothing lies between.
        """
        count = len(self)
        kept = self.shares.sort().values[round(low * count) : round(high * count)]
        if not len(kept):
            raise TuneError(f"noise_range=[{low:g}, {high:g}]: holds nothing; widen it")
        return replace(self, shares=kept)

    def to(self, device: torch.device | str) -> Masking:
        """The same on a device."""
        return replace(self, shares=self.shares.to(device))

    def hidden(self, noise: Tensor, index: Tensor) -> Tensor:
        """Where tokens are hidden: those of the least noise, at least one, (B, h, w) bool."""
        flat = noise.flatten(1)
        count = (flat.shape[1] * self.shares[index]).round().clamp(min=1)
        rank = flat.argsort(1).argsort(1)
        return (rank < count[:, None]).view_as(noise)

    def add_noise(self, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Tokens with some hidden, for rows of `index` (B,) into the grid: (B, h, w) integers."""
        return torch.where(self.hidden(noise, index), self.token, x0.long())

    def predict(
        self, model: Any, noisy: Tensor, index: Tensor, text: Mapping[str, Tensor]
    ) -> Tensor:
        """Logits of every place, (B, codes, h, w); the model is not told the share."""
        return model(noisy, **nest(text))

    def error(self, prediction: Tensor, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Minus the mean log-probability of what is hidden, (B,)."""
        each = F.cross_entropy(wide(prediction), x0.long(), reduction="none")
        return mean_over(each, self.hidden(noise, index))

    def change(self, prediction: Tensor, old: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """KL(old, new) of the distributions of what is hidden, the mean over places, (B,)."""
        p, q = (F.log_softmax(wide(x), 1) for x in (old, prediction))
        return mean_over((p.exp() * (p - q)).sum(1), self.hidden(noise, index))


def is_masked(pipe: Any) -> bool:
    """Whether a pipeline's images are tokens that its scheduler unmasks."""
    return getattr(pipe.scheduler.config, "mask_token_id", None) is not None


def check_goal(goal: Objective, pipe: Any) -> None:
    """Refuse objectives that are made for denoisers.

    Raises:
        TuneError: It needs gradients or densities of latents, or squared errors; or the setting
            that scales its errors is left at a denoiser's.
    """
    name = type(pipe).__name__
    if not isinstance(goal, Goal):
        raise TuneError(
            f"objective={goal.name!r}: looks into runs of latents, and {name} draws tokens; use "
            "tgo, kto, dpo or sft, or awm in rounds"
        )
    if goal.squared or goal.product:
        given = " with guard" if goal.product else ""
        raise TuneError(
            f"objective={goal.name!r}{given}: is made of squared denoising errors, and {name} "
            "guesses tokens; use tgo, kto, dpo, sft, or awm in rounds"
        )
    if goal.scaled_by and goal.scaled_by not in goal.model_fields_set:
        default = getattr(goal, goal.scaled_by)
        raise TuneError(
            f"objective.{goal.scaled_by}: the default, {default:g}, is made for denoising errors, "
            f"and {name} has log-likelihoods of tokens; set it, to begin with "
            f"{_usual(goal, pipe):.3g}"
        )


def _usual(goal: Objective, pipe: Any) -> float:
    """DPO's usual 0.1 on log-likelihoods of whole images, on means over their tokens."""
    factor = 0.1 * int(pipe.transformer.config.sample_size) ** 2
    if goal.scaled_by == "temperature":
        return 1 / factor
    return 2 * factor if goal.pairs else factor


def check_tokens(data: Dataset, model: Any) -> None:
    """Refuse latents that are no tokens of this model's codebook."""
    codes = int(model.config.codebook_size)
    rows = torch.linspace(0, len(data) - 1, min(len(data), _LOOKED_AT)).long().unique()
    found = data.latents(rows.tolist())
    if found.is_floating_point() or found.ndim != 3:
        raise TuneError(
            f"data={str(data.folder)!r}: latents of shape {data.latent_shape} are no tokens, which "
            f"{type(model).__name__} guesses; make the dataset with the pipeline that is tuned"
        )
    if not (int(found.min()) >= 0 and int(found.max()) < codes):
        raise TuneError(
            f"data={str(data.folder)!r}: tokens from {int(found.min())} to {int(found.max())}, and "
            f"{type(model).__name__} knows 0 to {codes - 1}; make the dataset with the pipeline "
            "that is tuned"
        )
