"""Initial noise by Markov chain Monte Carlo: draws from the noise that a reward favours."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer.core.checks import positive, whole
from steer.core.costs import Work
from steer.core.rows import per_row, rows_by_prompt
from steer.core.sphere import radius
from steer.core.types import Name, Population, Search, wide
from steer.methods.noise import passes
from steer.search.context import Context
from steer.search.guidance import check_gradient
from steer.search.method import Around, Method, check_method
from steer.search.short_runs import Asking, Grid, pure_noise, short_grid, slope


_EXAMPLE = "PCNL(SMC(8), lam=10.0, chains=4, burn_in=8)"
_NOISE, _CHANCE = 0, 1  # what a move draws


@dataclass(frozen=True)
class PCNL(Around):
    """Run `method` from noises drawn by MCMC from N(z; 0, I) exp(lam R(z)).

    R is the reward after a short deterministic run from z. Chains start at the pipeline's own
    noises and make preconditioned Crank-Nicolson Langevin moves (Psi-Sampler, 2025,
    arXiv:2506.01320; the moves: Cotter et al. 2013, arXiv:1202.0709), with h = `step` and
    rho = (1 - h/4) / (1 + h/4):

        z* = rho z + sqrt(1 - rho^2) (e + sqrt(h) / 2 lam grad R(z)),    e standard normal

    accepted or refused by Metropolis and Hastings, so that a chain's law is the one above whatever
    the step. Noise of any dimension stays noise: without a reward every move is accepted.

    `SMC` inside counts its particles back to the model's own law, so that its target stays
    p(x) exp(lam r(x)) with its own `lam`, and its evidence consistent. Other methods take the
    noises as they are. The plain image is no candidate.

    Args:
        method: What starts from the noises, all of which it draws at once.
        lam: Inverse temperature, in the reward's own units.
        chains: Per returned image, at most as many as the method has particles there.
        burn_in: Moves before the first noise is taken from a chain.
        thin: Moves between two noises that are taken from one chain.
        step: h, in (0, 4]; at 4 a proposal is independent of where the chain is, but for the
            gradient.
        pull: Largest length of the gradient's part of a move, in standard deviations of its noise;
            `None` is no limit. Chains are exact with it as well.
        through: Steps of the short run, `None` for all; 1 is the plain x0 prediction.
        checkpoint: As in `NoiseOptimization`.

    Raises:
        ValueError: Arguments of the wrong kind; more chains than particles; a method that draws
            noises of its own later on.
        RewardError: When called: the reward is not differentiable.
        UnsupportedPipelineError: When called: a call that starts from an image.
    """

    method: Method
    lam: float = 1.0
    chains: int = 2
    burn_in: int = 8
    thin: int = 2
    step: float = 0.5
    pull: float | None = 1.0
    through: int | None = 4
    checkpoint: bool | None = None

    def __post_init__(self) -> None:
        check_method("method", self.method, _EXAMPLE)
        positive("lam", self.lam, none=False)
        for name in ("chains", "burn_in", "thin"):
            whole(name, getattr(self, name), _EXAMPLE)
        positive("step", self.step, none=False)
        if self.step > 4:
            raise ValueError(f"step={self.step!r}: must be above 0 and at most 4; write {_EXAMPLE}")
        positive("pull", self.pull)
        if self.through is not None:
            whole("through", self.through, _EXAMPLE)
        if self.chains > self.method.populations[0]:
            raise ValueError(
                f"chains={self.chains!r}: {self.method!r} starts from {self.method.populations[0]} "
                "noises per image, so that some chains would be for nothing; lower chains"
            )
        if self.method.draws != self.method.populations[0]:
            raise ValueError(
                f"method={self.method!r}: draws noises of its own in later rounds; put it outside, "
                "as in Gate(PCNL(BestOfN(4)), threshold=0.6)"
            )

    @property
    def moves(self) -> int:
        """Moves of every chain."""
        kept = -(-self.method.populations[0] // self.chains)
        return self.burn_in + (kept - 1) * self.thin

    def cost(self, steps: int) -> int:
        """Denoiser-row equivalents per returned image; a row differentiated counts as two more."""
        return self.work(steps).equivalent_rows

    def work(self, steps: int) -> Work:
        """The method's, and a differentiated short run per chain and point."""
        chains = passes.exact_pass(self, steps) * (self.chains * (1 + self.moves))
        unrecorded = Work(rows=self.populations[0])  # the pipeline's own first call
        return self.method.work(steps) + chains + unrecorded

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Let the chains walk, then run the method from where they were."""
        pure_noise(ctx, type(self).__name__)
        check_gradient(ctx, type(self).__name__)
        ctx.model.check_resident()
        rows = rows_by_prompt(start.ids).values()
        first = start.take([row for own in rows for row in own[: self.chains * ctx.images]])
        walks: list[list[State]] = []
        with ctx.model.frozen():
            for part in ctx.groups(first):
                walks.append((yield from self._walk(ctx, part)))
        visits = [state for visit in zip(*walks, strict=True) for state in visit]
        return (yield from self.method(ctx, self._adopt(ctx, start, visits)))

    def _walk(self, ctx: Context, part: Population) -> Asking[list[State]]:
        """The points that are taken from the chains of one lane, all chains at a time."""
        grid, dtype, taken = short_grid(ctx.steps, self.through), part.x.dtype, []
        now = yield from self._look(ctx, part, grid, dtype)
        rho = (1 - self.step / 4) / (1 + self.step / 4)
        scale = math.hypot(ctx.steps[0].alpha, ctx.steps[0].sigma)
        for number in range(1, self.moves + 1):
            noise = ctx.starts.noise(part.ids, (number, _NOISE), wide(part.x))
            chance = ctx.starts.noise(part.ids, (number, _CHANCE), now.reward.double()[:, None])
            z = propose(now.x / scale, now.drift, noise, rho)
            there = yield from self._look(ctx, part.at(scale * z), grid, dtype)
            gain = self.lam * (there.reward - now.reward).double()
            ratio = gain + log_ratio(now.x / scale, now.drift, z, there.drift, rho)
            accepted = torch.special.log_ndtr(chance[:, 0]) < ratio
            now = now.replaced(accepted, there)
            told = {"reward": now.reward.tolist(), "accepted": accepted.tolist()}
            ctx.tell("iterate", part.ids, None, iteration=number - 1, **told)
            if number >= self.burn_in and (number - self.burn_in) % self.thin == 0:
                taken.append(now)
        return taken

    def _look(
        self, ctx: Context, here: Population, grid: Grid, dtype: torch.dtype
    ) -> Asking[State]:
        """The reward at a point of every chain, and the drift that its gradient makes there."""
        again = passes.recomputes(self, len(grid))
        up = yield from slope(ctx, here, grid, dtype, again)
        scale = math.hypot(ctx.steps[0].alpha, ctx.steps[0].sigma)
        drift = (math.sqrt(self.step) / 2 * self.lam * scale) * up.gradient
        if self.pull is not None:
            drift = drift * (self.pull / radius(drift).clamp(min=1e-30)).clamp(max=1.0)
        return State(wide(here.x), up.reward, drift, here.ids)

    def _adopt(self, ctx: Context, start: Population, visits: list[State]) -> Population:
        """The points that were taken as particles of their own, as many as `start` has."""
        made: list[tuple[Tensor, float, Name]] = []
        for prompt, rows in rows_by_prompt(start.ids).items():
            own = [point for state in visits for point in state.points(prompt)]
            made += own[: len(rows)]
        x = torch.stack([point for point, _, _ in made]).to(start.x.dtype)
        parents = [name for _, _, name in made]
        fresh = ctx.starts.adopt(x, [prompt for prompt, _ in parents])
        rewards = [reward for _, reward, _ in made]
        ctx.starts.log_weights |= {
            name: -self.lam * reward for name, reward in zip(fresh.ids, rewards, strict=True)
        }
        ctx.tell_descent("branch", fresh.ids, None, parents)
        return fresh


@dataclass(frozen=True, eq=False)
class State:
    """Where chains are.

    Attributes:
        x: Initial latents, `(rows, *latent)`, float32 at least.
        reward: `(rows,)`.
        drift: The gradient's part of the next move, in standard deviations of its noise.
        ids: The chains.
    """

    x: Tensor
    reward: Tensor
    drift: Tensor
    ids: tuple[Name, ...]

    def replaced(self, accepted: Tensor, there: State) -> State:
        """The rows that moved from `there`, the others from here."""
        rows = per_row(accepted, self.x)
        return replace(
            self,
            x=torch.where(rows, there.x, self.x),
            reward=torch.where(accepted, there.reward, self.reward),
            drift=torch.where(rows, there.drift, self.drift),
        )

    def points(self, prompt: int) -> list[tuple[Tensor, float, Name]]:
        """Latents, reward and chain of every row of a prompt."""
        rows = [row for row, (own, _) in enumerate(self.ids) if own == prompt]
        return [(self.x[row], float(self.reward[row]), self.ids[row]) for row in rows]


def propose(z: Tensor, drift: Tensor, noise: Tensor, rho: float) -> Tensor:
    """A move of every chain: `rho z + sqrt(1 - rho^2) (noise + drift)`, all `(rows, *latent)`."""
    return rho * z + math.sqrt(1 - rho * rho) * (noise + drift)


def log_ratio(z: Tensor, drift: Tensor, z_new: Tensor, drift_new: Tensor, rho: float) -> Tensor:
    """Log of N(z_new) q(z | z_new) / (N(z) q(z_new | z)), `(rows,)` float64.

    q is the law of `propose`. Without drift a move is reversible for N(0, I), and what is left is
    <w, m> - |m|^2 / 2 of the way back less that of the way there, w the move in standard
    deviations of its noise, m the drift it began with.
    """
    fresh = math.sqrt(1 - rho * rho)

    def tilt(start: Tensor, end: Tensor, m: Tensor) -> Tensor:
        w = (end.double() - rho * start.double()) / fresh
        return (m.double() * (w - m.double() / 2)).flatten(1).sum(1)

    return tilt(z_new, z, drift_new) - tilt(z, z_new, drift)
