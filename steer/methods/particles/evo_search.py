"""Evolution of initial noise and of states on the way, by the rewards of finished images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from steer.core.checks import plain_calls, rising_fractions, share, whole
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.errors import UnsupportedSchedulerError
from steer.core.rows import rows_by_prompt
from steer.core.seeds import row_seed
from steer.core.sphere import neighbours
from steer.core.transition import transition
from steer.core.types import Name, Population, Search, Step, wide
from steer.search.context import Context
from steer.search.method import Method
from steer.search.sampling import beginning
from steer.search.short_runs import Asking


_EXAMPLE = "EvoSearch(n=(12, 4, 4, 4, 4), at=(0, 0.4, 0.6, 0.8), elites=3)"
_AT = (0.0, 0.4, 0.6, 0.8)
_EVOLVING = -6  # where parents and mutations are drawn from, beside the particles' own seeds


@dataclass(eq=False)
class Pool:
    """Finished particles that may become parents.

    Attributes:
        finished: With their final latents.
        states: By step, then by particle: its latents there, and the clean prediction.
        living: The names in the population, prompt by prompt.
    """

    finished: Population
    states: dict[int, dict[Name, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    living: dict[int, list[Name]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvoSearch(Method):
    """Generations of particles; the finished images' rewards choose the parents of the next one.

    EvoSearch (He et al. 2025, arXiv:2505.17618). The first generation is `n` fresh noises. Every
    further one belongs to a fraction `at` of the steps: its children are parents' states at that
    step, mutated, and run from there to the end, so that later generations cost less. Every reward
    is that of a finished image; no preview is judged. What a parent's state at a step was is kept
    from its own run.

    A population is the `elites` best of the one before, as they are, and the children since. A
    child's parent is the best of a random share `tournament` of the population (1 is always the
    best of all). At the first step the mutation is preconditioned Crank-Nicolson, on the noise's
    sphere,

        x <- sqrt(1 - b^2) x + b z                                   b = mutation,

    which keeps N(0, I). At later steps, with D the clean prediction and e the noise in x,

        x <- alpha D + sigma (sqrt(1 - b^2) e + b z),

    the transition of a step that stays where it is, which keeps the noise level; the paper adds
    noise there, which does not. With b = 1 a child keeps of its parent no more than D.

    The population is the prompt's: several returned images are its best. Particle 0 is the plain
    image, and never lost, so that the result is not worse.

    Args:
        n: New particles in each generation, per returned image; one number for all, or one for the
            first and one for each of `at`.
        at: Where the further generations begin, as rising fractions of the steps in [0, 1). The
            paper's are (0, 0.4, 0.6, 0.8) for Stable Diffusion 2.1 and (0.1, 0.4, 0.6, 0.8) for
            FLUX.
        elites: The best that go on unchanged, per returned image; at most the first generation.
        mutation: b, the share of fresh noise in a child, in (0, 1].
        tournament: Of the population, the share that a parent is the best of, in (0, 1].

    Raises:
        ValueError: Arguments of the wrong kind.
        UnsupportedSchedulerError: When called: a solver that cannot begin in the middle.
    """

    n: int | tuple[int, ...] = 4
    at: tuple[float, ...] = _AT
    elites: int = 3
    mutation: float = 0.2
    tournament: float = 0.9

    reorders: ClassVar[bool] = True
    """Runs begin in the middle: caches of activations per row cannot follow."""

    def __post_init__(self) -> None:
        for name in ("n", "at"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for count in self.n if isinstance(self.n, tuple) else (self.n,):
            whole("n", count, _EXAMPLE)
        inner = self.at[1:] if isinstance(self.at, tuple) and self.at[:1] == (0,) else self.at
        rising_fractions("at", inner, "at=(0, 0.4, 0.6, 0.8)")
        if isinstance(self.n, tuple) and len(self.n) != len(self.at) + 1:
            raise ValueError(
                f"n={self.n} with at={self.at}: one size for the first generation and one for each "
                f"of at, as in {_EXAMPLE}"
            )
        whole("elites", self.elites, _EXAMPLE)
        if self.elites > self.sizes[0]:
            raise ValueError(
                f"elites={self.elites}: the first generation has only {self.sizes[0]} per image; "
                f"raise n or lower elites, as in {_EXAMPLE}"
            )
        share("mutation", self.mutation, "fresh noise")
        share("tournament", self.tournament, "the population")

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> EvoSearch:
        """Half of `compute` plain calls for the first generation, the rest for further ones.

        These are of equal size, at as many of the default fractions, the last ones, as get one
        child each; what is left goes into the first generation.

        Args:
            compute: Plain calls, at least 1.
            steps: Denoiser calls of a plain call.
            costs: What a row, a decode, a score cost; by default rows alone count.

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        check_costs(costs)
        half = max(math.floor(compute / 2), 1)

        def plan(first: int, children: int, at: tuple[float, ...]) -> EvoSearch:
            return cls((first, *[children] * len(at)), at, elites=min(first, 3))

        def fits(at: tuple[float, ...]) -> bool:
            return costs.fits(plan(half, 1, at).work(steps), compute, steps)

        at = next((_AT[k:] for k in range(len(_AT)) if fits(_AT[k:])), ())
        children = 1
        if at:
            children = costs.most(lambda m: plan(half, m, at).work(steps), compute, steps)
        first = costs.most(lambda n: plan(n, children, at).work(steps), compute, steps, least=half)
        return plan(first, children, at)

    @property
    def sizes(self) -> tuple[int, ...]:
        """New particles in every generation, per returned image."""
        return self.n if isinstance(self.n, tuple) else (self.n,) * (len(self.at) + 1)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return self.sizes

    def levels(self, steps: int) -> list[int]:
        """The step at which each further generation begins."""
        return [math.floor(f * steps + 1e-9) for f in self.at]

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image; fewer where a solver asks twice per step."""
        return self.rows_at(steps, range(steps))

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps."""
        firsts = (0, *self.levels(steps))
        return sum(
            size * sum(index >= first for index in indices)
            for first, size in zip(firsts, self.sizes, strict=True)
        )

    def work(self, steps: int) -> Work:
        """Its rows, and an image of every particle."""
        return Work.best_of(self.cost(steps), sum(self.sizes))

    def suits(self, ctx: Context) -> bool:
        """Whether the call's solver can begin where the generations do."""
        try:
            self._begins(ctx)
        except UnsupportedSchedulerError:
            return False
        return True

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Generation after generation, each from the rewards of those before."""
        levels = self._begins(ctx)
        pool = Pool(start.take([]), {level: {} for level in levels})
        yield from _run(ctx, pool, start, 0)
        for number, (level, size) in enumerate(zip(levels, self.sizes[1:], strict=True)):
            parents = self._parents(ctx, pool, size * ctx.images, number)
            children = self._mutated(ctx, pool, parents, number, ctx.steps[level])
            self._retire(ctx, pool, set(levels[number + 1 :]))
            yield from _run(ctx, pool, children, level)
        return ctx.winners(pool.finished)

    def _begins(self, ctx: Context) -> list[int]:
        last = len(ctx.steps) - 1
        return [
            beginning(ctx, (level, min(level + 1, last))) for level in self.levels(len(ctx.steps))
        ]

    def _parents(self, ctx: Context, pool: Pool, count: int, generation: int) -> list[Name]:
        """`count` winners of tournaments for every prompt."""
        found = []
        for prompt, living in pool.living.items():
            seed = row_seed(ctx.starts.seeds[prompt], _EVOLVING, generation)
            random = torch.Generator().manual_seed(seed)
            ranked = sorted(living, key=ctx.judging.rank)
            asked = math.ceil(self.tournament * len(ranked) - 1e-9)
            for _ in range(count):
                entered = torch.randperm(len(ranked), generator=random)[:asked]
                found.append(ranked[int(entered.min())])
        return found

    def _mutated(
        self, ctx: Context, pool: Pool, parents: Sequence[Name], generation: int, step: Step
    ) -> Population:
        """A child of every parent, as new particles at the same step."""
        known, prompts = pool.states[step.index], [prompt for prompt, _ in parents]
        x, x0 = (torch.stack([known[name][part] for name in parents]) for part in (0, 1))
        places = [(p, prompts[:row].count(p)) for row, p in enumerate(prompts)]
        noise = ctx.starts.noise(places, (_EVOLVING, generation), x)
        kept = math.sqrt(1 - self.mutation**2)
        if step.index == 0 and not ctx.steps.offset:
            children = ctx.starts.adopt(neighbours(x, noise, kept).to(x.dtype), prompts)
            ctx.tell_descent("branch", children.ids, None, parents)
            return children
        here = replace(step, alpha_next=step.alpha, sigma_next=step.sigma)
        moved = transition(here, wide(x), x0, kept).sample(noise)
        names = ctx.starts.names(prompts)
        ctx.starts.keep(names, ctx.initial(parents).x.unbind())
        ctx.tell_descent("branch", names, step, parents)
        return Population(moved.to(x.dtype), names)

    def _retire(self, ctx: Context, pool: Pool, ahead: set[int]) -> None:
        """Keep the elites alone, and of their states those that are still needed."""
        count = self.elites * ctx.images
        for prompt, living in pool.living.items():
            pool.living[prompt] = sorted(living, key=ctx.judging.rank)[:count]
        names = {name for living in pool.living.values() for name in living}
        pool.states = {
            level: {name: state for name, state in known.items() if name in names}
            for level, known in pool.states.items()
            if level in ahead
        }


def _run(ctx: Context, pool: Pool, population: Population, first: int) -> Asking[None]:
    """A generation from a step to its finished images, which join the pool; a lane at a time."""
    for part in ctx.groups(population):
        solver, now = ctx.solver(part), part
        for step in ctx.steps[first:]:
            output = yield from ctx.denoise(now, step)
            if step.index in pool.states:
                clean = step.x0(now.x, output)
                states = zip(now.x.unbind(), clean.unbind(), strict=True)
                pool.states[step.index] |= dict(zip(now.ids, states, strict=True))
            now = now.at(solver.step(step, now.x, output, now.ids))
        ctx.evaluate_lanes(now)
        pool.finished = Population.join([pool.finished, now])
    if ctx.judging.picking.is_best:
        pool.finished = ctx.winners(pool.finished)
    for prompt, rows in rows_by_prompt(population.ids).items():
        pool.living.setdefault(prompt, []).extend(population.ids[row] for row in rows)
