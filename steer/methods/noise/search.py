"""Search for initial noise without gradients: neighbours, evolution, or paths through noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steer.core.checks import one_of, plain_calls, positive, whole
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.rows import rows_by_prompt
from steer.core.sphere import neighbours, radius, renormalise, unit
from steer.core.types import Name, Population, Search, wide
from steer.methods.noise.paths import bounds, path_rows, search_paths
from steer.rewards.parts import check_absolute
from steer.search.context import Context
from steer.search.method import Method, kl_of_draws
from steer.search.sampling import sample_all
from steer.search.short_runs import Asking, judge, pure_noise, run, short_grid


_CLOSEST = 0.95  # elites that agree more than this still leave room for change


@dataclass(frozen=True)
class NoiseSearch(Method):
    """Rounds of `n` candidate noises per image, each round's made from the best so far.

    The first round is random search, and with `rounds=1` there is no more, so that it also runs
    where every particle is a call of the pipeline. What the following ones propose is the strategy:

    - `"zero-order"`: neighbours of the best noise at a fixed `cosine` on its sphere (Ma et al.
      2025, arXiv:2501.09732, Zero-Order Search; the best so far stays the pivot, so rounds never
      lose).
    - `"evolution"`: the cross-entropy method on the sphere. The `elites` best unit noises of all
      rounds have the mean m; candidates lie at cosine |m| from it, in random directions: where
      elites agree the search narrows by itself. This is a von Mises-Fisher fit, which draws at
      that cosine in high dimension. A Gaussian fit coordinate by coordinate would estimate
      thousands of variances from a handful of elites, and leave noise that is white no more.
    - `"paths"`: Search over Paths (same paper): `keep` noises are denoised for a share `at` of the
      steps; then in every round each is noised again by `back` steps in several ways, n in all,
      these are denoised further than they were taken back, and the `keep` best x0 previews go on.
      The last round reaches the end. Needs a solver that can restart in the middle.

    With `through`, zero-order and evolution judge candidates by a short deterministic run of that
    many steps, and only the best noise is sampled in full; so only without `through` (and without
    paths) is the plain image a candidate.

    Args:
        n: Candidates per round and returned image.
        rounds: Rounds, the random one included (for paths: of noising again).
        strategy: As above.
        through: Steps that judge a candidate; `None` for the user's solver and all steps.
        cosine: Between a zero-order neighbour and its pivot.
        elites: Noises that an evolution round learns from.
        keep: Paths that go on, per returned image; n must be a multiple.
        at: Where the paths first stop, as a fraction of the steps.
        back: Steps that a path is taken back.

    Raises:
        ValueError: Arguments of the wrong kind; when called: fewer steps than the paths need, or a
            reward that compares candidates, with `through`.
    """

    n: int = 4
    rounds: int = 4
    strategy: Literal["zero-order", "evolution", "paths"] = "zero-order"
    through: int | None = None
    cosine: float = 0.95
    elites: int = 4
    keep: int = 2
    at: float = 0.25
    back: int = 2

    def __post_init__(self) -> None:
        example = "NoiseSearch(n=4, rounds=4)"
        for name in ("n", "rounds", "elites", "keep", "back"):
            whole(name, getattr(self, name), example)
        one_of("strategy", self.strategy, ("zero-order", "evolution", "paths"))
        positive("cosine", self.cosine, 1.0, none=False)
        positive("at", self.at, 1.0, none=False)
        if self.through is not None:
            whole("through", self.through, example)
        if self.strategy == "evolution" and (self.elites < 2 or self.n < 2):
            raise ValueError(
                f"elites={self.elites}, n={self.n}: evolution needs at least 2 of either, as in "
                "NoiseSearch(n=8, rounds=4, strategy='evolution', elites=4)"
            )
        if self.strategy == "paths" and (self.n % self.keep or self.through is not None):
            raise ValueError(
                f"n={self.n}, keep={self.keep}, through={self.through}: with paths n is a multiple "
                "of keep, and through is left out, as in NoiseSearch(n=4, rounds=4, "
                "strategy='paths', keep=2)"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> NoiseSearch:
        """Zero-order search for `compute` plain calls: rounds of 4 at most, half of them or more.

        `costs` says what a row, a decode, a score cost; by default rows alone count.

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        check_costs(costs)
        n = max(1, min(4, math.floor(compute / 2)))
        return cls(n=n, rounds=costs.most(lambda r: cls(n=n, rounds=r).work(steps), compute, steps))

    @property
    def needs_loop(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether noise is changed: not in one round of random search, where seeds are drawn."""
        return self.rounds > 1 or self.through is not None or self.strategy == "paths"

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        if self.strategy == "paths":
            return (self.keep, self.n)
        return (self.n,) if self.through is None else (self.n, 1)

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        if self.strategy == "paths":
            return path_rows(self, steps)
        if self.through is None:
            return self.n * self.rounds * steps
        return self.n * self.rounds * min(self.through, steps) + steps

    def work(self, steps: int) -> Work:
        """Its rows, and an image of every candidate: of a short run, or of a full one."""
        rows, looked = self.cost(steps), self.n * self.rounds
        if self.strategy == "paths":
            return Work.best_of(rows, self.n, looked)
        if self.through is None:
            return Work.best_of(rows, looked)
        return Work(rows, decodes=2, previews=looked, scores=looked + 1)

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """That of random search; unknown where noises are made from others."""
        chooses = self.rounds == 1 and self.strategy != "paths"
        return kl_of_draws(ctx, prompt) if chooses else None

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Judge a round, make the next from the best of all."""
        if self.strategy == "paths":
            bounds(self, len(ctx.steps))
            return (yield from search_paths(ctx, start, self))
        if self.needs_loop:
            pure_noise(ctx, type(self).__name__)
        if self.through is not None:
            check_absolute(ctx.reward, f"through={self.through}")
        noises, scores, best = start, {}, None
        fresh = start
        for number in range(self.rounds):
            if number:
                fresh = self._proposals(ctx, noises, scores, number)
                noises = Population.join([noises, fresh])
            if self.through is not None:
                scores |= yield from self._glance(ctx, fresh)
                continue
            done = yield from sample_all(ctx, fresh)
            best = done if best is None else Population.join([best, done])
            if ctx.judging.picking.is_best:
                best = ctx.winners(best)
            else:
                ctx.evaluate(best)
            scores = ctx.finals
        if best is None:
            rows = [row for own in _ranking(noises, scores) for row in own[: ctx.images]]
            best = yield from sample_all(ctx, noises.take(rows))
        return ctx.winners(best)

    def _glance(self, ctx: Context, noises: Population) -> Asking[dict[Name, float]]:
        """Rewards after a short run."""
        grid, dtype = short_grid(ctx.steps, self.through), noises.x.dtype
        clean = yield from run(ctx, noises, grid, dtype)
        rewards = judge(ctx, noises.at(clean), dtype).tolist()
        ctx.tell("iterate", noises.ids, None, reward=rewards)
        return dict(zip(noises.ids, rewards, strict=True))

    def _proposals(
        self, ctx: Context, noises: Population, scores: dict[Name, float], number: int
    ) -> Population:
        """The next round: n per returned image, each image with a pivot or elites of its own."""
        made: list[Tensor] = []
        parents: list[Name] = []
        for prompt, ranked in zip(noises.prompts, _ranking(noises, scores), strict=True):
            for image in range(ctx.images):
                names = [(prompt, image * self.n + j) for j in range(self.n)]
                noise = ctx.starts.noise(names, (number,), noises.x)
                best = ranked[image :: ctx.images]
                made.append(self._children(wide(noises.x[best]), noise))
                parents += [noises.ids[best[0]]] * self.n
        x = torch.cat(made).to(noises.x.dtype)
        fresh = ctx.starts.adopt(x, [prompt for prompt, _ in parents])
        ctx.tell_descent("branch", fresh.ids, None, parents)
        return fresh

    def _children(self, parents: Tensor, noise: Tensor) -> Tensor:
        """Candidates from the noises so far, best first, and fresh noise."""
        if self.strategy == "zero-order":
            return neighbours(parents[:1], noise, self.cosine)
        mean = unit(parents[: self.elites]).mean(0, keepdim=True)
        agreement = radius(mean).clamp(max=_CLOSEST)
        return neighbours(renormalise(mean, radius(parents[:1])), noise, agreement)


def _ranking(noises: Population, scores: dict[Name, float]) -> list[list[int]]:
    """Rows of every prompt, best first; ties go to the earlier row."""
    return [
        sorted(rows, key=lambda row: -scores[noises.ids[row]])
        for rows in rows_by_prompt(noises.ids).values()
    ]
