"""Backpropagation of a reward through a sampling run, cut short: which steps the gradient reaches.

A run maps noise to a clean sample by T denoiser calls, and its full gradient needs all T graphs.
The published methods differ in what they leave out (`Cut`); the loop is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.core.types import Move, Step, wide
from steer.tune.noising import Noising
from steer.tune.objectives import squared_error


Denoise: TypeAlias = Callable[[Tensor, Step], Tensor]
"""Latents and the step they are at to the prediction, both `(B, *latent)`."""
Mover: TypeAlias = Callable[[int, Step, Tensor, Tensor], Move]
"""A position in the grid, its step, latents and their x0 to the next latents' distribution."""
Noise: TypeAlias = Callable[[int, Tensor], Tensor]
"""A position in the grid, and latents, to the fresh noise of that step, of the latents' shape."""


@dataclass(frozen=True)
class Cut:
    """What of a run the gradient reaches.

    Attributes:
        trained: Positions in the grid whose denoiser call has a gradient.
        end: Steps that are run. Where this is less than all, the result is the last step's x0.
        detached: The denoiser's input is taken as it is, so that a step is reached through the
            sampler's own linear path alone, and no gradient is multiplied by a denoiser's Jacobian.
    """

    trained: frozenset[int]
    end: int
    detached: bool = False


def last_steps(count: int, last: int) -> Cut:
    """The last `last` of `count` steps: DRaFT-K (arXiv:2309.17400); AlignProp's cut for a random K.

    Raises:
        TuneError: `last` outside 1 to `count`.
    """
    _check("last", last, count)
    return Cut(frozenset(range(count - last, count)), count)


def spread_steps(count: int, trained: int) -> Cut:
    """`trained` of `count` steps, evenly spread with the first among them, inputs detached.

    DRTune (arXiv:2405.00760): early steps are trained too, at the price of as many graphs.

    Raises:
        TuneError: `trained` outside 1 to `count`.
    """
    _check("trained", trained, count)
    chosen = frozenset(i * count // trained for i in range(trained))
    return Cut(chosen, count, detached=True)


def one_step(count: int, position: int) -> Cut:
    """Stop at a step and take its x0, with the gradient of that call alone: ReFL
    (arXiv:2304.05977).

    Raises:
        TuneError: `position` outside 0 to `count` - 1.
    """
    if not 0 <= position < count:
        raise TuneError(f"position={position!r}: must be from 0 to {count - 1}, a step of the run")
    return Cut(frozenset([position]), position + 1)


def run(
    grid: Sequence[Step], x: Tensor, denoise: Denoise, cut: Cut, move: Mover, noise: Noise
) -> Tensor:
    """From initial latents to what the reward sees, with the gradient that `cut` leaves.

    Args:
        grid: The steps, each leading to the next.
        x: `(B, *latent)` at the first of them.
        denoise: The denoiser, after guidance.
        cut: What of the run has a gradient; all else runs without.
        move: How a step goes on.
        noise: Asked at steps that draw some.

    Returns:
        `(B, *latent)`: the end of the run, or the last step's x0.
    """
    x0 = x
    for position, step in enumerate(grid[: cut.end]):
        with torch.set_grad_enabled(position in cut.trained):
            output = denoise(x.detach() if cut.detached else x, step)
        x0 = step.x0(x, output)
        law = move(position, step, x, x0)
        x = law.sample(noise(position, x) if law.std else None)
    return x if cut.end == len(grid) else x0


def renoised_last(
    step: Step, clean: Tensor, denoise: Denoise, noise: Callable[[int], Tensor], draws: int
) -> Tensor:
    """The last step from `draws` fresh noisings of a clean sample: DRaFT-LV (arXiv:2309.17400).

    The mean of their gradients varies less than the gradient of the one last step of DRaFT-1.

    Args:
        step: The last one.
        clean: `(B, *latent)`, taken as it is.
        denoise: The denoiser, for `draws` rows of every row of `clean`, repeated one by one.
        noise: The noise `(B, *latent)` of draw 0, 1, ...
        draws: How many.

    Returns:
        `(B draws, *latent)`, the draws of a row together.
    """
    clean = clean.detach()
    noisy = [step.alpha * clean + step.sigma * noise(k) for k in range(draws)]
    x = torch.stack(noisy, 1).flatten(0, 1)
    return step.x0(x, denoise(x, step))


def noised_image(
    step: Step, clean: Tensor, denoise: Denoise, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """One call on an image that is noised to a step's level: ImageReFL (arXiv:2505.22569).

    Args:
        step: The level.
        clean: The image's latents, `(B, *latent)`.
        denoise: The denoiser.
        noise: `(B, *latent)`.

    Returns:
        The call's x0, `(B, *latent)`, and its denoising error, `(B,)`: the mean squared difference
        of the prediction from what the denoiser should answer.
    """
    x = step.alpha * clean + step.sigma * noise
    output = denoise(x, step)
    level = torch.zeros(len(x), dtype=torch.long, device=x.device)
    target = Noising.at(step, clean.dtype).to(x.device).target(clean, noise, level)
    return step.x0(x, output), squared_error(output, target)


def aligned(
    step: Step, clean: Tensor, denoise: Denoise, noise: Tensor, jump: float = 0.1
) -> Tensor:
    """A clean sample changed by one denoiser call at any noise level: Direct-Align of SRPO
    (arXiv:2509.06942).

    The sample is noised by a known noise; one DDIM step goes a little way down, and the known noise
    is taken out again. With q = sigma / alpha that is x0 + (1 - q' / q) (D - x0), D the denoiser's
    x0: a sharp image at every level, and x0 itself where D has it right. For flow it is the paper's
    x0 + (s - s') / (1 - s') (u - v).

    Args:
        step: The level.
        clean: x0, `(B, *latent)`, taken as it is.
        denoise: The denoiser.
        noise: `(B, *latent)`.
        jump: s - s', of s = q / (1 + q), in (0, 1]; the paper has 0.1. Where less is left, the step
            goes down to the clean sample.

    Returns:
        `(B, *latent)`.

    Raises:
        TuneError: `jump` is outside, or the step has no noise.
    """
    if not 0 < jump <= 1:
        raise TuneError(f"jump={jump!r}: must be above 0 and at most 1, such as 0.1")
    if not step.sigma > 0:
        raise TuneError("step: has no noise to take out; give one before the run's end")
    clean = clean.detach()
    share = step.sigma / (step.alpha + step.sigma)
    below = max(share - jump, 0.0)
    kept = below * (1 - share) / ((1 - below) * share)
    x = step.alpha * clean + step.sigma * noise
    return clean + (1 - kept) * (step.x0(x, denoise(x, step)) - clean)


def reward_loss(reward: Tensor, ceiling: float | None = None) -> Tensor:
    """-R, or max(0, ceiling - R), which leaves images alone that are good enough; `(B,)`.

    Args:
        reward: `(B,)`.
        ceiling: In the reward's units; ReFL has 2 for ImageReward.
    """
    reward = wide(reward)
    return -reward if ceiling is None else (ceiling - reward).relu()


def _check(name: str, value: int, count: int) -> None:
    if not 1 <= value <= count:
        raise TuneError(f"{name}={value!r}: must be from 1 to the {count} steps of a run")
