"""Particle filtering: weight, resample, move, and weight again."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from steer.core.checks import one_of, positive, predicate, share, whole
from steer.core.costs import Work
from steer.core.divergence import kl_of_choice, kl_of_weights
from steer.core.potentials import POTENTIALS, Potential, damping, finish, tempering
from steer.core.resampling import RESAMPLERS
from steer.core.types import Population, Query, Search, Step
from steer.core.when import When, at
from steer.driver.solver import Solver
from steer.search.cloud import Cloud
from steer.search.context import Context
from steer.search.kernels.choose import (
    aim,
    asks_further,
    check_kernel,
    choose_kernel,
    further_calls,
    own_moves,
)
from steer.search.kernels.draws import Draw, Kernel, ask_denoiser, draw_move
from steer.search.kernels.uphill import GradientMove
from steer.search.maps import check_map, jump_to_clean
from steer.search.method import Method


_EXAMPLE = "SMC(8, lam=2.0, when=at(0.2, 0.4, 0.6, 0.8))"
_USUAL = at(0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class SMC(Method):
    """Sequential Monte Carlo towards p(x) exp(lam r(x)): steering by Feynman-Kac potentials.

    `n` particles per returned image move side by side with fresh noise at every step. At the steps
    `when` their x0 previews are scored and weighted by a potential of the reward; where the weights
    have become too unequal (effective sample size at most `ess` of the population) the population
    is resampled: promising particles are copied, hopeless ones dropped. Weights are log-weights,
    accumulate from one resampling to the next, and are per prompt: all particles of a prompt
    (`n` times its images) compete with each other and with no others. At the end final rewards
    make up for what the potentials on the way said, so that the weighted population follows
    p(x) exp(lam r(x)) for any of them (Singhal et al. 2025, FK steering, arXiv:2501.06848).

    *Which law moves them.* The pipeline's own scheduler where it draws noise (ancestral, DDPM, LCM,
    sde-dpm++, DDIM called with eta). Under any deterministic one our own moves on the pipeline's
    grid: DDIM with a share `eta` of fresh noise, on flow models the "euler-ancestral" of `Rho`.

    *What `lam` means.* With `standardise`, rewards are divided by their standard deviation, the
    largest that the particles of the prompt have had at any scoring so far: so `lam=2` makes a
    standard deviation of the most varied scoring worth a factor exp(2), whatever the reward's
    units. A prompt whose rewards are all equal has weights all equal. Without it `lam` multiplies
    the reward itself.

    *Proposals.* `proposal` is any other move, such as one that follows a gradient; its particles
    are weighted by the kernel's density over its own, so the law stays the same. With gradients of
    the reward and `temper` that is DAS (Kim et al. 2025, arXiv:2501.05803).

    Args:
        n: Particles per returned image.
        lam: Inverse temperature of the tilt, at least 0.
        when: Steps at which previews are scored; the last step is left to the final reward.
        potential: `"difference"`, `"max"`, `"sum"`, `"last"`, or a function such as those of
            `steer.core.potentials`.
        resample: `"systematic"`, `"stratified"`, `"ssp"`, `"residual"` or `"multinomial"`.
        ess: Resample where the effective sample size is at most this share of the population;
            `None` resamples at every scoring, 0 never.
        temper: `None` for lam at once; a rate g for lam * min((1 + g)^i - 1, 1) with i in
            hundredths of the way (DAS takes 0.008); `"adaptive"` for as much of lam as keeps the
            effective sample size at `ess`. The final weight is always that of lam.
        damping: Divide lam by 1 + damping P on the way, less and less as the noise goes; see
            `steer.core.potentials.damping`. At `lam a` the weights of a reward of curvature a are
            those of its exact value function on Gaussian data.
        standardise: Divide rewards by their standard deviation per prompt.
        eta: Share of fresh noise in DDIM moves, in (0, 1].
        kernel: `"auto"` as above; `"solver"`, `"ddim"` or another preset of `Rho` to insist; a
            `Rho`, or any other `Kernel`.
        proposal: A `Kernel` to draw from instead.
        choose: Return the `"best"` final rewards, or `"sample"` from the final weights.
        lookahead: What previews show. `"x0"`, the clean prediction; `"map"`, where a flow map
            takes the latents in one jump (Sabour et al. 2025, FMTT, arXiv:2511.22688), at one
            more denoiser row per preview.

    Raises:
        ValueError: Arguments of the wrong kind; when called: `when` holds at no step of the run.
        UnsupportedSchedulerError: When called: a kernel that the schedule does not have.
        UnsupportedPipelineError: When called: `lookahead="map"` on a model that is no flow map.
    """

    n: int
    lam: float = 2.0
    when: When = _USUAL
    potential: str | Potential = "difference"
    resample: Literal["systematic", "stratified", "ssp", "residual", "multinomial"] = "systematic"
    ess: float | None = 0.5
    temper: float | Literal["adaptive"] | None = None
    standardise: bool = True
    eta: float = 1.0
    kernel: str | Kernel = "auto"
    proposal: Kernel | None = None
    choose: Literal["best", "sample"] = "best"
    damping: float = 0.0
    lookahead: Literal["x0", "map"] = "x0"

    reorders: ClassVar[bool] = True
    """Rows change places between steps: caches of activations per row cannot follow."""

    def __post_init__(self) -> None:
        whole("n", self.n, _EXAMPLE)
        positive("lam", self.lam, zero=True, none=False)
        predicate(self.when, _EXAMPLE)
        if not callable(self.potential):
            one_of("potential", self.potential, tuple(POTENTIALS))
        one_of("resample", self.resample, tuple(RESAMPLERS))
        positive("ess", self.ess, zero=True)
        if self.ess is not None and self.ess > 1:
            raise ValueError(f"ess={self.ess!r}: a share of the population, at most 1")
        if self.temper != "adaptive":
            positive("temper", self.temper)
        positive("damping", self.damping, zero=True, none=False)
        share("eta", self.eta, "fresh noise")
        check_kernel(self.kernel, self.eta)
        if self.proposal is not None and (self.kernel == "solver" or not callable(self.proposal)):
            raise ValueError(
                f"proposal={self.proposal!r} with kernel={self.kernel!r}: must be a function "
                "(ctx, step, population, output) -> Move, corrected towards kernel='ddim' or a "
                "kernel that is such a function"
            )
        if self.proposal is not None and asks_further(self.kernel):
            raise ValueError(
                f"proposal={self.proposal!r} with kernel={self.kernel!r}: a move of several "
                "denoiser calls has no density to correct by; use inner=1, or no proposal"
            )
        one_of("choose", self.choose, ("best", "sample"))
        one_of("lookahead", self.lookahead, ("x0", "map"))

    def cost(self, steps: int) -> int:
        """Denoiser-row equivalents per returned image; a row differentiated counts two more."""
        return self.work(steps).equivalent_rows

    def work(self, steps: int) -> Work:
        """Its rows, previews at every scoring, and a gradient per step where a kernel takes one."""
        scored = self._scored(range(steps), steps)
        work = Work.best_of(steps, 1, scored) * self.n
        further = sum(further_calls(self.kernel, index, steps) for index in range(steps))
        work += Work(rows=(further + (scored if self.lookahead == "map" else 0)) * self.n)
        if self._guides:
            work += Work(previews=steps, scores=steps, gradients=steps) * self.n
        if self._differentiates:  # the pipeline's own first call, unrecorded, comes on top
            work += Work(rows=1, backward_rows=steps) * self.n
        jumps = self._recorded_jumps(range(steps), steps)
        work += Work(rows=jumps, backward_rows=jumps) * self.n
        return work + Work(decodes=1)

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps."""
        further = sum(further_calls(self.kernel, index, steps) for index in indices)
        once = 1 if self._differentiates and 0 in indices else 0
        jumps = self._scored(indices, steps) if self.lookahead == "map" else 0
        jumps += self._recorded_jumps(indices, steps)
        return self.n * (len(indices) + further + once + jumps)

    def _scored(self, indices: Iterable[int], steps: int) -> int:
        """At how many of these steps previews are scored."""
        scored = self.when.indices(steps) if self.n > 1 else ()
        return sum(index in scored and index + 1 < steps for index in indices)

    @property
    def _guides(self) -> bool:
        return hasattr(self.proposal or self.kernel, "grad")

    @property
    def _differentiates(self) -> bool:
        return bool(getattr(self.proposal or self.kernel, "grad", False))

    def _recorded_jumps(self, indices: Iterable[int], steps: int) -> int:
        """How often a row jumps along a flow map, for the gradient that moves it."""
        move = self.proposal or self.kernel
        return move.jumps(indices, steps) if isinstance(move, GradientMove) else 0

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """That of all resamplings and the final choice; unknown where moves are not the model's."""
        if self.proposal is not None or callable(self.kernel):
            return None
        resampled = {row["step"] for row in ctx.trace.of("select", prompt)} - {None}
        drawn = {*resampled, None} if self.choose == "sample" and self.n > 1 else resampled
        total = sum(
            kl_of_weights(np.array(row["log_weights"]))
            for row in ctx.trace.of("weights", prompt)
            if row["step"] in drawn
        )
        if self.choose == "sample":
            return total
        _, picked = ctx.judging.picking.latest.get(prompt, (0, 0.0))
        best = kl_of_choice(self.n * ctx.images, ctx.images)  # copies are not independent
        return total + (best if ctx.judging.picking.is_best else picked)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Filter, then choose among the final particles."""
        cloud = yield from self.filter(ctx, start)
        if self.choose == "sample":
            ctx.judging.picking.refuse("choose='sample'")
        if self.choose == "best" or cloud.size <= ctx.images:
            return ctx.winners(cloud.population)
        return cloud.draw(ctx, ctx.images)

    def filter(self, ctx: Context, start: Population) -> Generator[Query, Tensor, Cloud]:
        """The weighted population at the end: `(P, N)` log-weights, and the evidence.

        `cloud.log_evidence + log_mean_exp(cloud.log_weights)` estimates log E[exp(lam r)] per
        prompt; its exponential is unbiased where `standardise` is off.
        """
        if self.lookahead == "map":
            check_map(ctx, type(self).__name__)
        scored = self._scoring_steps(len(ctx.steps))
        cloud, solver = Cloud.of(start, ctx.starts.log_weights), ctx.solver(start)
        kernel = self._kernel(ctx, solver)
        if kernel is not None:
            cloud.leave_plain(ctx)
        for step in ctx.steps:
            here, output = yield from ask_denoiser(
                ctx, cloud.population, aim(ctx, kernel, step), self._differentiates
            )
            draw, late = None, asks_further(kernel)
            if kernel is not None and not late:
                draw = yield from draw_move(ctx, kernel, self.proposal, step, here, output)
            here, output = here.at(here.x.detach()), output.detach()
            if step.index in scored and cloud.size > 1:
                clean = here.at(step.x0(here.x, output))
                if self.lookahead == "map":
                    clean = yield from jump_to_clean(ctx, here, step)
                self._weigh(ctx, cloud, clean, step)
                rows = self._resample(ctx, cloud, step)
                if rows is not None:
                    solver.gather(rows)
                    output = output[rows]
                    draw = draw and draw.take(rows)
            if kernel is not None and late:  # copies draw noise of their own
                draw = yield from draw_move(ctx, kernel, None, step, cloud.population, output)
            self._move(ctx, cloud, step, solver, output, draw)
        if cloud.size > 1:
            self._weigh(ctx, cloud, cloud.population, None)
        return cloud

    def _scoring_steps(self, steps: int) -> list[int]:
        """Steps at which previews are scored."""
        found = [index for index in self.when.indices(steps) if index + 1 < steps]
        if not found and self.n > 1:
            raise ValueError(
                f"when={self.when!r} holds at no step of {steps} before the last, so nothing would "
                "be selected on the way; name other steps, run more of them, or use BestOfN"
            )
        return found

    def _kernel(self, ctx: Context, solver: Solver) -> Kernel | None:
        """The law of the moves; `None` is the pipeline's own solver."""
        kernel = choose_kernel(ctx, solver, type(self).__name__, self.kernel, self.eta)
        if isinstance(self.proposal, GradientMove):
            self.proposal.check(ctx)
        if kernel is None and self.proposal is not None:
            return own_moves(ctx, self.eta)
        return kernel

    def _move(
        self,
        ctx: Context,
        cloud: Cloud,
        step: Step,
        solver: Solver,
        output: Tensor,
        draw: Draw | None,
    ) -> None:
        """The next latents of every particle, and the correction of their weights."""
        now = cloud.population
        if draw is None:
            cloud.population = now.at(solver.step(step, now.x, output, now.ids))
            return
        x, ratio = draw.sample(ctx.starts.noise(now.ids, (step.index,), now.x))
        cloud.population = now.at(x)
        if ratio is not None:
            cloud.log_weights = cloud.log_weights + cloud.grid(ratio)

    def _weigh(self, ctx: Context, cloud: Cloud, clean: Population, step: Step | None) -> None:
        """Score, weight and tell; `step` is `None` at the end."""
        rewards = cloud.grid(ctx.evaluate(clean, step))
        scale = self.lam * (cloud.reward_scale(rewards) if self.standardise else torch.ones(1, 1))
        scale = scale.expand(len(rewards), 1).double()
        potential: Potential = finish
        if step is not None:
            potential = self.potential if callable(self.potential) else POTENTIALS[self.potential]
            scale = scale * damping(step, self.damping)
            scale = scale * self._warmth(cloud, potential, rewards, scale, step)
        cloud.weigh(potential, rewards, scale)
        cloud.tell(ctx, step, scale)

    def _warmth(
        self, cloud: Cloud, potential: Potential, rewards: Tensor, scale: Tensor, step: Step
    ) -> Tensor:
        """How much of `lam` counts at this step, `(P, 1)` in (0, 1]."""
        if self.temper != "adaptive":
            return torch.full_like(scale, tempering(step, self.temper))
        least = (0.5 if self.ess is None else self.ess) * cloud.size
        cloud.warmth = cloud.warmest(potential, rewards, scale, least)
        return cloud.warmth

    def _resample(self, ctx: Context, cloud: Cloud, step: Step) -> list[int] | None:
        share = 1.0 if self.ess is None else self.ess
        least = share * cloud.size * (1 + 1e-6)
        return cloud.resample(ctx, step, RESAMPLERS[self.resample], lambda size: size <= least)
