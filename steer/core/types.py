"""The types that all of steer shares: steps, queries, populations, moves, rewards.

Rows are prompt-major: P prompts x N particles. Latents are `(rows, *latent)` of any rank (Flux
packs tokens, video has frames). Rewards and log-weights are `(P, N)` float32. Images are float in
[0, 1], `(B, 3, H, W)`, RGB.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor


_MUCH_NOISE = 0.1

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One point of the pipeline's own grid: `x = alpha * x0 + sigma * noise` at `t`.

    `alpha_next`, `sigma_next` describe the point the step leads to (clean data after the last
    step). One form covers variance-preserving (SD), variance-exploding (Euler latents, alpha = 1)
    and flow (SD3, Flux: alpha = 1 - sigma) schedules.
    """

    index: int
    count: int
    t: Tensor
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float
    prediction: Prediction

    @property
    def noise_share(self) -> float:
        """`sigma / sqrt(alpha^2 + sigma^2)`: one measure for VP, VE and flow grids, in [0, 1]."""
        return self.sigma / math.hypot(self.alpha, self.sigma)

    @property
    def ends_in_noise(self) -> bool:
        """Whether the run stops after this step although much noise is left (`denoising_end`).

        What some schedulers leave, `sigma_min` or the first training step's noise, is not much.
        """
        share = self.sigma_next / math.hypot(self.alpha_next, self.sigma_next)
        return self.index + 1 == self.count and share > _MUCH_NOISE

    def x0(self, x: Tensor, output: Tensor) -> Tensor:
        """The clean sample (`pred_original_sample`) that `output` implies at `x`; same shape.

        Computed in float32 at least. An output with a learned variance behind the prediction has
        twice the channels; the variance is left out. With s = sqrt(alpha^2 + sigma^2) the
        v-prediction rule `x0 = (alpha x / s - sigma v) / s` holds on VP and VE grids alike
        (Salimans & Ho 2022, arXiv:2202.00512; Karras et al. 2022, arXiv:2206.00364 for the VE
        scaling).
        """
        x32, out32 = wide(x), wide(without_variance(output, x))
        match self.prediction:
            case "sample":
                x0 = out32
            case "epsilon":
                x0 = (x32 - self.sigma * out32) / max(self.alpha, 1e-8)
            case "v_prediction":
                s = math.hypot(self.alpha, self.sigma)
                x0 = (self.alpha * x32 / s - self.sigma * out32) / s
            case "flow":
                x0 = x32 - self.sigma * out32
        return x0.to(x.dtype)

    def noise(self, x: Tensor, x0: Tensor) -> Tensor:
        """The noise for which `x = alpha * x0 + sigma * noise`; same shape as `x`."""
        return ((wide(x) - self.alpha * wide(x0)) / max(self.sigma, 1e-8)).to(x.dtype)


Name: TypeAlias = tuple[int, int]
"""A particle: (prompt index, particle index), unique within a call."""


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One denoiser call that a method asks for; it is sent the model output after CFG.

    Attributes:
        latents: One lane, `(lane rows, *latent)`: exactly as many rows as the pipeline's own batch.
            Where a callback changes the pipeline's latents, they are changed here in place.
        step: The noise level of the latents; any step, in any order, any number of times. The level
            that it leads to is where a flow map jumps to; other denoisers are not told.
        grad: Record the denoiser call, so that gradients reach `latents`.
        ids: The particle in every row; padding rows repeat one.
        slots: Rows that are no padding, in order; empty where none is.
    """

    latents: Tensor
    step: Step
    grad: bool = False
    ids: tuple[Name, ...] = ()
    slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """Particles and their latents, row by row; rows of one prompt stand together.

    Attributes:
        x: Latents `(rows, *latent)`.
        ids: (prompt, particle) per row; the randomness of a row depends on nothing else.
    """

    x: Tensor
    ids: tuple[Name, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompts(self) -> list[int]:
        """The prompts that have rows, in order."""
        return list(dict.fromkeys(prompt for prompt, _ in self.ids))

    def at(self, x: Tensor) -> Population:
        """The same particles at other latents."""
        return Population(x, self.ids)

    def take(self, rows: Sequence[int]) -> Population:
        """Rows by index, in that order."""
        if list(rows) == list(range(len(self))):
            return self
        index = torch.as_tensor(rows, dtype=torch.long, device=self.x.device)
        return Population(self.x[index], tuple(self.ids[row] for row in rows))

    @staticmethod
    def join(parts: Sequence[Population]) -> Population:
        """All rows of several populations, prompt by prompt."""
        if len(parts) == 1:
            return parts[0]
        whole = Population(
            torch.cat([part.x for part in parts]), tuple(i for part in parts for i in part.ids)
        )
        return whole.take(sorted(range(len(whole)), key=lambda row: whole.ids[row][0]))


Search: TypeAlias = Generator[Query, Tensor, Population]
"""A running method: yields queries, is sent model outputs, returns the winners."""


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """One reverse transition as a distribution N(mean, std^2 I); `std = 0` is deterministic."""

    mean: Tensor
    std: float
    x0: Tensor

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """`mean + std * noise`; noise may be left out when `std` is 0."""
        if self.std == 0 or noise is None:
            return self.mean
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of `x` under this move, `(rows,)` float32. Raises ValueError at std = 0."""
        if self.std <= 0:
            raise ValueError(f"std={self.std}: a deterministic move has no density")
        z = (x.float() - self.mean.float()).flatten(1) / self.std
        return -0.5 * (z * z).sum(1) - z.shape[1] * (math.log(self.std) + 0.5 * math.log(math.tau))


@runtime_checkable
class Reward(Protocol):
    """Scores images; higher is better.

    Attributes:
        name: Short name, as it appears in reports.
        differentiable: Gradients reach `images`.
        range: Smallest and largest possible score (may be infinite).
        needs_prompt: Whether the score depends on the prompt.
    """

    name: str
    differentiable: bool
    range: tuple[float, float]
    needs_prompt: bool

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`(B, 3, H, W)` float images in [0, 1] and B prompts to `(B,)` float32 scores."""
        ...


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_variance(output: Tensor, x: Tensor) -> Tensor:
    """The prediction alone, of an output that may have a learned variance behind it.

    Args:
        output: `(rows, C, ...)`, or `(rows, 2 C, ...)` (Nichol & Dhariwal 2021, arXiv:2102.09672).
        x: `(rows, C, ...)`.
    """
    learned = output.ndim > 1 and output.shape[1] == 2 * x.shape[1]
    return output[:, : x.shape[1]] if learned else output


def by_prompt(values: Tensor, prompts: int) -> Tensor:
    """`(P * N, ...)` prompt-major rows as `(P, N, ...)`."""
    return values.unflatten(0, (prompts, -1))


def rows_of(index: Tensor, population: int) -> Tensor:
    """Per-prompt particle indices `(P, K)` as flat row indices `(P * K,)` of P x `population`."""
    offset = torch.arange(index.shape[0], device=index.device)[:, None] * population
    return (index + offset).flatten()
