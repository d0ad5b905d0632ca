"""Parts of guidance: shifts of x0, how much of one reaches the next latents, reward gradients."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from steer.core.ddim import ddim
from steer.core.errors import (
    GradientError,
    RewardError,
    UnsupportedPipelineError,
    UnsupportedSchedulerError,
)
from steer.core.rows import per_row
from steer.core.types import Population, Query, Step, wide
from steer.core.warn import warn
from steer.core.when import When
from steer.rewards.parts import check_absolute
from steer.search.context import Context
from steer.search.starts import FIRST_MADE


_DEAD = 1e-3  # a step that passes on less of a shift than this passes on none


def shift_output(step: Step, output: Tensor, shift: Tensor) -> Tensor:
    """The model output whose clean prediction lies `shift` further: `Step.x0` backwards.

    Computed in float32 at least. Given to any solver, it makes that solver's own step from the
    shifted prediction; a shift of zero leaves the output as it is, bit for bit.

    Args:
        step: Where the output was asked for; its prediction type is kept.
        output: `(rows, *latent)`; a learned variance behind the prediction stays as it is.
        shift: In units of clean latents, same shape.
    """
    if output.shape != shift.shape:
        shift = torch.cat([shift, torch.zeros_like(output[:, shift.shape[1] :])], 1)
    sigma = max(step.sigma, 1e-8)
    match step.prediction:
        case "sample":
            gain = 1.0
        case "epsilon":
            gain = -max(step.alpha, 1e-8) / sigma
        case "v_prediction":
            gain = -math.hypot(step.alpha, step.sigma) / sigma
        case "flow":
            gain = -1.0 / sigma
    return (wide(output) + gain * shift).to(output.dtype)


def reach(ctx: Context, step: Step) -> float:
    """How much of a shift of x0 arrives in the next latents, as a share of what x0 is there.

    With x' = alpha' x0 + ... a shift of x0 by d moves x' by `reach * alpha' * d`: 1 - r for DDIM
    without noise, 1 - r^2 for ancestral steps, with r the ratio of signal-to-noise
    (`steer.core.ddim`); 1 on the last step. It is asked of the user's scheduler itself, as
    configured and called.
    Solvers with memory answer for their first-order step: what they extrapolate from a shift now
    they take back at the next step. Where they cannot begin at `step`, DDIM answers for them.
    """
    zero = torch.zeros(1, 1, 1, 1, device=step.t.device)
    name = [(0, FIRST_MADE)]
    try:
        plain, moved = (
            ctx.make_solver(False).step(step, zero, shift_output(step, zero, zero + far), name)
            for far in (0.0, 1.0)
        )
    except UnsupportedSchedulerError:
        plain, moved = (ddim(step, zero, zero + far).mean for far in (0.0, 1.0))
    share = float(moved - plain) / max(step.alpha_next, 1e-8)
    return share if share > _DEAD else 0.0


def window(when: When, steps: int, method: str) -> list[int]:
    """Steps at which `when` holds; warns where there are none."""
    found = when.indices(steps)
    if not found:
        message = (
            f"{method}: when={when!r} holds at no step of {steps}, so nothing is guided; name "
            "other steps, or run more of them"
        )
        warn(message, stacklevel=2)
    return found


def check_gradient(ctx: Context, method: str) -> None:
    """Raise unless the reward can be differentiated.

    Raises:
        RewardError: It declares that it cannot.
        ValueError: It only ranks candidates.
    """
    check_absolute(ctx.reward, method)
    if not ctx.reward.differentiable:
        raise RewardError(
            f"{method}: reward {ctx.reward.name!r} is not differentiable (it declares so): use a "
            "method without gradients, such as NoiseSearch(), "
            "NoiseOptimization(gradient='zero-order'), BestOfNGuidance(4), LookaheadGuidance() or "
            "BestOfN(4), or set differentiable=True on a function through which gradients do flow"
        )


def reward_gradient(ctx: Context, clean: Population) -> tuple[Tensor, Tensor]:
    """Rewards of clean latents, and their gradient through reward and decoder.

    A piece at a time. The gradient is carried back row by row at a largest entry of 1, so that a
    decoder in half precision neither under- nor overflows.

    Args:
        ctx: Where to decode and score.
        clean: Clean predictions, float32 at least.

    Returns:
        Rewards `(rows,)` and gradients `(rows, *latent)`, float32 at least.

    Raises:
        RewardError: The scores carry no gradient.
        GradientError: A gradient that is not finite.
    """
    chunk, rewards, gradients = ctx.piece, [], []
    with ctx.model.frozen():
        for first in range(0, len(clean), chunk):
            part = clean.take(range(first, min(first + chunk, len(clean))))
            reward, gradient, size = scaled_gradient(ctx, part)
            rewards.append(reward)
            gradients.append(gradient * size.to(gradient.dtype))
    gradient = torch.cat(gradients)
    check_finite(ctx, clean, gradient)
    return torch.cat(rewards), gradient


def record_x0(
    ctx: Context, step: Step, population: Population
) -> Generator[Query, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Ask the denoiser so that its x0 can be differentiated.

    Args:
        ctx: Where the denoiser is asked.
        population: Latents at `step`.
        step: As the denoiser is to be asked; `steer.search.maps.to_clean` has a flow map jump.

    Returns:
        The output without gradients, the latents as a leaf, and the x0 that is a function of it,
        both float32 at least; all `(rows, *latent)`.

    Raises:
        UnsupportedPipelineError: No gradient comes back from the denoiser.
    """
    with torch.enable_grad():
        leaf = wide(population.x).detach().requires_grad_()
        latents = leaf.to(population.x.dtype)
    output = yield from ctx.denoise(population.at(latents), step, grad=True)
    if not output.requires_grad:
        raise UnsupportedPipelineError(
            f"{ctx.model.name}: no gradient comes back from its denoiser (compiled "
            "for inference, or quantised?); use through='x0'"
        )
    with torch.enable_grad():
        x0 = step.x0(leaf, wide(output))
    return output.detach(), leaf, x0


def gradient_behind(
    ctx: Context, step: Step, population: Population, leaf: Tensor, x0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of `x0`, and their gradient with respect to the latents `leaf` that it is made of.

    Args:
        ctx: Where to decode and score.
        step: Of the denoiser's call.
        population: Whose rows these are.
        leaf, x0: As `record_x0` returns them.

    Returns:
        Rewards `(rows,)`, gradients `(rows, *latent)` of rewards whose gradient in x0 has a largest
        entry of 1, and what to multiply them by, `(rows, 1, ...)`.

    Raises:
        RewardError: The scores carry no gradient.
        GradientError: A gradient that is not finite.
    """
    rewards, slope = reward_gradient(ctx, population.at(x0.detach()))
    size = per_row(largest(slope), slope)
    with ctx.backward(step, len(population)):
        (gradient,) = torch.autograd.grad(x0, leaf, slope / size)
    check_finite(ctx, population, gradient)
    return rewards, gradient, size


def scaled_gradient(
    ctx: Context, clean: Population, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of some rows, and their gradient before the decoder's part is scaled back.

    Args:
        ctx: Where to decode and score.
        clean: Clean predictions, float32 at least.
        dtype: What they are rounded to before they are decoded; `None` leaves that to the decoder.

    Returns:
        Rewards `(rows,)`, gradients `(rows, *latent)` of rewards whose gradient in the pixels has
        a largest entry of 1, and what to multiply them by, `(rows, 1, ...)`.

    Raises:
        RewardError: The scores carry no gradient.
    """
    with torch.enable_grad():
        leaf = clean.x.detach().requires_grad_()
        images = ctx.preview(leaf if dtype is None else leaf.to(dtype), grad=True)
        reward = ctx.score(images, clean.ids)
    if not reward.requires_grad:
        raise RewardError(
            f"reward {ctx.reward.name!r} says that it is differentiable, and its scores carry no "
            "gradient (detached, or under no_grad): mend the reward, or use a method without "
            "gradients, such as NoiseSearch() or NoiseOptimization(gradient='zero-order')"
        )
    ctx.ledger.gradients += len(clean)
    with ctx.meter.count("gradient", len(clean)):
        (pixels,) = torch.autograd.grad(reward, images, torch.ones_like(reward))
        size = largest(pixels)
        pixels = pixels / per_row(size, pixels)
        (gradient,) = torch.autograd.grad(images, leaf, pixels)
    return reward.detach(), gradient, per_row(size, leaf)


def largest(x: Tensor) -> Tensor:
    """The largest absolute entry of every row, `(rows,)`; 1 for rows of zeros."""
    size = x.detach().flatten(1).abs().amax(1)
    return torch.where(size == 0, 1.0, size)


def check_finite(ctx: Context, population: Population, gradient: Tensor) -> None:
    """Raise GradientError where a row's gradient is not finite; prompt and particle are named."""
    finite = gradient.flatten(1).isfinite().all(1).tolist()
    if all(finite):
        return
    prompt, particle = population.ids[finite.index(False)]
    raise GradientError(
        f"the gradient of reward {ctx.reward.name!r} is not finite for prompt {prompt} "
        f"({ctx.prompts[prompt]!r}), particle {particle}: run the pipeline or its VAE in float32 "
        "or bfloat16, or use a method without gradients, such as NoiseSearch() or "
        "NoiseOptimization(gradient='zero-order')"
    )


def leave_plain_names(ctx: Context, start: Population) -> Population:
    """The same rows, with new names for the plain call's particles, which guidance will change.

    A particle's name says whose image it is, and guided ones are no longer the plain call's. Step
    the solver under the old names all the same, so that it draws the plain call's noise.
    """
    names = list(start.ids)
    plain = [row for row, (_, particle) in enumerate(names) if particle < ctx.images]
    given = ctx.starts.names([names[row][0] for row in plain])
    ctx.starts.keep(given, [start.x[row] for row in plain])
    for row, name in zip(plain, given, strict=True):
        names[row] = name
    renamed = Population(start.x, tuple(names))
    if plain:
        ctx.tell_descent("select", names, None, start.ids)
    return renamed
