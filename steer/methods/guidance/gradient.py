"""Guidance by the reward's gradient: every guided step goes on from a better clean prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from steer.core.checks import one_of, plain_calls, positive, predicate, whole
from steer.core.ddim import ddim
from steer.core.errors import UnsupportedPipelineError, UnsupportedSchedulerError
from steer.core.sphere import radius, unit
from steer.core.types import Name, Population, Search, Step, wide
from steer.core.when import When, between
from steer.driver.solver import Solver
from steer.methods.noise.paths import noised
from steer.methods.particles.gradient_proposal import GradientProposal
from steer.methods.selection.best_of_n import BestOfN
from steer.rewards.thresholds.conformal import noise_share
from steer.search.context import Context
from steer.search.guidance import (
    apart,
    check_finite,
    check_gradient,
    largest,
    reward_gradient,
    shifted,
    window,
)
from steer.search.short_runs import Asking


_USUAL = between(0.4, 0.7)
_EXAMPLE = "GradientGuidance(n=2, strength=0.1, when=between(0.4, 0.7))"


@dataclass(frozen=True)
class GradientGuidance:
    """Move the clean prediction of every guided step up the reward's gradient.

        x0 <- x0 + strength * |x0| * g / |g|,    g = grad r(decode(x0))

    and then the pipeline's own solver makes its step from there: the changed x0 goes in as the
    model output that implies it. The gradient's length is dropped, so `strength` means the same for
    every reward and model.

    `through="x0"` differentiates decoder and reward, and never the denoiser: MPGD (He et al. 2024,
    arXiv:2311.16424), at no further denoiser call. `through="denoiser"` takes the gradient with
    respect to the noisy latents, through the denoiser: DPS (Chung et al. 2023, arXiv:2209.14687)
    and the forward guidance of Bansal et al. 2023 (arXiv:2302.07121), at two more rows per guided
    row and the memory of a training step.

    A raw gradient finds adversarial images, which please the reward and nobody else: keep the
    window short and the strength low, let several particles compete, watch a `judge`.

    Args:
        n: Particles per returned image; all are guided, the best is returned.
        strength: Length of the shift of x0, as a share of its norm; 0 guides nothing.
        when: Steps that are guided.
        through: What the gradient goes through.
        inner: Gradient steps that share the length `strength` (x0 only); each decodes and scores.
        recur: How often a guided step is taken, noised again and repeated before it is final
            (self-recurrence, Bansal et al.); each costs a denoiser call.
        schedule: `"constant"`, or `"noise"`: times sigma / sqrt(alpha^2 + sigma^2), less and less.

    Raises:
        ValueError: Arguments of the wrong kind; when called: a reward that only ranks candidates.
        RewardError: When called: the reward is not differentiable.
        GradientError: When called: a gradient that is not finite.
        UnsupportedSchedulerError: When called: `recur` with a solver that remembers latents.
        UnsupportedPipelineError: When called: no gradient comes back from the denoiser.
    """

    n: int = 1
    strength: float = 0.1
    when: When = _USUAL
    through: Literal["x0", "denoiser"] = "x0"
    inner: int = 1
    recur: int = 0
    schedule: Literal["constant", "noise"] = "constant"

    def __post_init__(self) -> None:
        whole("n", self.n, _EXAMPLE)
        whole("inner", self.inner, _EXAMPLE)
        if self.recur != 0:
            whole("recur", self.recur, "recur=0 for no repetition, or recur=2")
        positive("strength", self.strength, zero=True, none=False)
        predicate(self.when, _EXAMPLE)
        one_of("through", self.through, ("x0", "denoiser"))
        one_of("schedule", self.schedule, ("constant", "noise"))
        if self.inner > 1 and self.through == "denoiser":
            raise ValueError(
                f"inner={self.inner} with through='denoiser': one denoiser call gives one "
                "gradient; leave inner out, or use recur"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int) -> GradientGuidance:
        """As many particles as `compute` plain calls pay for. Raises ValueError below 1."""
        plain_calls(compute)
        return cls(math.floor(compute + 1e-9))

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return (self.n,)

    def cost(self, steps: int) -> int:
        """Denoiser-row equivalents per returned image; a row differentiated counts two more."""
        guided = self.when.indices(steps) if self.strength else []
        rows = steps + self.recur * len(guided)
        if self.through == "denoiser":
            rows += 2 * (1 + self.recur) * len(guided)
            rows += 1 if 0 in guided else 0  # the pipeline's own first call, unrecorded
        return self.n * rows

    def proposal(self, **options: object) -> GradientProposal:
        """This gradient as a proposal for `SMC(proposal=...)`, in the same window.

        Args:
            **options: `lam`, `pull`, `temper`, `eta` of `GradientProposal`.
        """
        return replace(GradientProposal(through=self.through, when=self.when), **options)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """A lane at a time, guided at the window's steps; the best of all."""
        guided = window(self.when, len(ctx.steps), type(self).__name__) if self.strength else []
        if not guided:
            return (yield from BestOfN(self.n)(ctx, start))
        check_gradient(ctx, type(self).__name__)
        self._check_solver(ctx.solver(start))
        finished, named = [], apart(ctx, start)
        with ctx.frozen():
            for part, drawn in zip(ctx.groups(named), ctx.groups(start), strict=True):
                done = yield from self._sample(ctx, part, drawn, guided)
                if self.n > 1:
                    ctx.evaluate(done)
                finished.append(done)
        return ctx.winners(Population.join(finished))

    def _check_solver(self, solver: Solver) -> None:
        if self.recur and solver.anchored:
            raise UnsupportedSchedulerError(
                f"recur={self.recur}: {solver.name} remembers the latents of earlier steps, which "
                "noising again would contradict; use recur=0, or DDIMScheduler, "
                "EulerDiscreteScheduler or DPMSolverMultistepScheduler"
            )

    def _sample(
        self, ctx: Context, now: Population, drawn: Population, guided: list[int]
    ) -> Asking[Population]:
        """One lane from the first step to the last."""
        solver = ctx.solver(drawn)
        names: tuple[Name, ...] = drawn.ids
        for step in ctx.steps:
            if step.index not in guided:
                output = yield from ctx.denoise(now, step)
            else:
                for number in range(self.recur):
                    output = yield from self._guided(ctx, now, step)
                    now = _again(ctx, now, step, output, number)
                output = yield from self._guided(ctx, now, step)
            now = now.at(solver.step(step, now.x, output, names))
        return now

    def _guided(self, ctx: Context, now: Population, step: Step) -> Asking[Tensor]:
        """The denoiser's output, changed so that its x0 has moved up the reward."""
        level = noise_share(step) if self.schedule == "noise" else 1.0
        size = self.strength * level
        if self.through == "denoiser":
            output, x0, rewards, gradient = yield from _recorded(ctx, now, step)
            shift = size * radius(x0) * unit(gradient)
        else:
            output = yield from ctx.denoise(now, step)
            x0 = step.x0(wide(now.x), wide(output))
            shift, rewards = torch.zeros_like(x0), None
            for _ in range(self.inner):
                found, gradient = reward_gradient(ctx, now.at(x0 + shift))
                shift = shift + size / self.inner * radius(x0) * unit(gradient)
                rewards = found if rewards is None else rewards
            assert rewards is not None
        length = (radius(shift) / radius(x0)).flatten().tolist()
        ctx.tell("score", now.ids, step, reward=rewards.tolist(), preview=True)
        ctx.tell("guide", now.ids, step, shift=length)
        return shifted(step, output, shift)


def _again(ctx: Context, now: Population, step: Step, output: Tensor, number: int) -> Population:
    """One step down without noise, and up again with fresh noise."""
    below = ddim(step, now.x, step.x0(now.x, output)).mean
    end = replace(step, alpha=step.alpha_next, sigma=step.sigma_next)
    noise = ctx.starts.noise(now.ids, (step.index, number), now.x)
    return now.at(noised(below, end, step, noise))


def _recorded(
    ctx: Context, now: Population, step: Step
) -> Asking[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Output, x0, rewards, and a multiple of the reward's gradient at the noisy latents."""
    with torch.enable_grad():
        leaf = wide(now.x).detach().requires_grad_()
        asked = leaf.to(now.x.dtype)
    output = yield from ctx.denoise(now.at(asked), step, grad=True)
    if not output.requires_grad:
        raise UnsupportedPipelineError(
            f"{ctx.model.name}: no gradient comes back from its denoiser (compiled for "
            "inference, or quantised?); use through='x0'"
        )
    with torch.enable_grad():
        x0 = step.x0(leaf, wide(output))
    rewards, slope = reward_gradient(ctx, now.at(x0.detach()))
    size = largest(slope).view(-1, *(1,) * (slope.ndim - 1))
    (gradient,) = torch.autograd.grad(x0, leaf, slope / size)
    check_finite(ctx, now, gradient)
    return output.detach(), x0.detach(), rewards, gradient
