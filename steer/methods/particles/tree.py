"""Diffusion tree search: whole rollouts, and what their ends say about their starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from steer.core.checks import one_of, plain_calls, positive, rising_fractions, whole
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.resampling import without_replacement
from steer.core.seeds import row_seed
from steer.core.types import Population, Search
from steer.methods.particles.branching import Mover, check_moves
from steer.methods.particles.tree_nodes import Grove, Node, Policy
from steer.methods.particles.tree_rollouts import Rollouts
from steer.search.context import Context
from steer.search.kernels.choose import asks_further
from steer.search.kernels.draws import Kernel
from steer.search.method import Method
from steer.search.short_runs import Asking


_EXAMPLE = "Tree(iterations=32) or Tree(compute=16)"
_SEARCHING, _CHOOSING = -4, -5  # where choices are drawn from, beside the particles' own seeds


@dataclass(frozen=True)
class Tree(Method):
    """Grow a tree of rollouts, each from where the tree is promising to a finished image.

    Diffusion tree search and sampling (Jain et al. 2025, DTS* and DTS, arXiv:2506.20701). The root
    branches into fresh noises, and states at the fractions `at` of the steps branch into next
    states. One iteration descends to a state that has room for another child (fewer than C N^alpha
    after N visits; the deepest always has), rolls out from it to the end with fresh noise, and
    scores the finished image: no previews are judged. Values go back up by

        v(state) = 1/lam * log mean over children exp(lam v(child))

    `policy="search"` (DTS*) descends to the child with the largest `v + explore * sqrt(log N(state)
    / N(child))`, `policy="sample"` (DTS) to one drawn by exp(lam times that); published DTS has
    `explore=0`. Every state has a leaf below it before it is compared with others, so no value is
    ever a guess.

    Iterations run `batch` at a time per returned image, from states of the same depth: visits count
    when they are chosen, so that they spread, and lanes whose width divides `batch` stay full. An
    expansion costs as many rows as steps are left (the state's own denoiser output is kept).
    `compute` bounds every prompt on its own, in whole rounds, whatever the lane width; `Budget`
    bounds what the pipeline really runs: with several prompts, whose trees branch at different
    depths, lanes are not full, and padding counts where it costs.
    Whenever it ends, the best finished image is the answer. With a sampler that draws noise itself
    the plain call's own image is among them.

    Memory: two latents per branching fraction and one per finished image of every rollout.

    Args:
        iterations: Rollouts per returned image, at most.
        compute: Plain calls' worth of denoiser rows per returned image, at most. One of the two
            must be given.
        batch: Rollouts side by side, per returned image.
        policy: `"search"` or `"sample"`.
        lam: Inverse temperature, above 0; of rewards in units of their standard deviation (the
            largest that the prompt's finished images had so far) where `standardise`.
        explore: Weight of the exploration bonus, in the same units.
        widen: (C, alpha). With the paper's (2, 0.8) the first 36 rollouts are all from fresh noise.
        at: Where states branch, as rising fractions of the steps in (0, 1).
        standardise: Divide rewards by their standard deviation per prompt.
        choose: Return the `"best"` finished images, or `"sample"` leaves by exp(lam v) from the
            root down, which with the policy `"sample"` and ever more iterations are samples from
            p(x) exp(lam r(x)).
        eta: Share of fresh noise in DDIM moves, in (0, 1].
        kernel: Which law moves them, as for `SMC`, at one denoiser call per step. Solvers with
            history cannot begin in the middle: `"auto"` takes our own moves for them. States after
            which no noise is drawn do not branch.

    Raises:
        ValueError: Arguments of the wrong kind.
        UnsupportedSchedulerError: When called: a kernel that the schedule does not have.
    """

    iterations: int | None = None
    compute: float | None = None
    batch: int = 4
    policy: Literal["search", "sample"] = "search"
    lam: float = 2.0
    explore: float = 0.25
    widen: tuple[float, float] = (1.0, 0.7)
    at: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    standardise: bool = True
    choose: Literal["best", "sample"] = "best"
    eta: float = 1.0
    kernel: str | Kernel = "auto"

    reorders: ClassVar[bool] = True
    """Rows come and go between steps: caches of activations per row cannot follow."""

    def __post_init__(self) -> None:
        for name in ("widen", "at"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.iterations is None and self.compute is None:
            raise ValueError(f"iterations and compute: one must say when to end; write {_EXAMPLE}")
        if self.iterations is not None:
            whole("iterations", self.iterations, _EXAMPLE)
        if self.compute is not None:
            plain_calls(self.compute)
        whole("batch", self.batch, "Tree(32, batch=4)")
        one_of("policy", self.policy, ("search", "sample"))
        positive("lam", self.lam, none=False)
        positive("explore", self.explore, zero=True, none=False)
        if not isinstance(self.widen, tuple) or len(self.widen) != 2:
            raise ValueError(f"widen={self.widen!r}: must be (C, alpha), as in widen=(1.0, 0.7)")
        positive("widen", self.widen[0], none=False)
        positive("widen", self.widen[1], none=False)
        rising_fractions("at", self.at, "at=(0.2, 0.4, 0.6, 0.8)")
        one_of("choose", self.choose, ("best", "sample"))
        check_moves(self.kernel, self.eta)
        if asks_further(self.kernel):
            raise ValueError(
                f"kernel={self.kernel!r}: Tree counts one denoiser call per step and keeps it for "
                "every child of a state; use inner=1, or SMC, Beam or Blockwise with inner calls"
            )

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> Tree:
        """As many rollouts as `compute` plain calls pay for, images included.

        `costs` says what a row, a decode, a score cost; by default rows alone count.

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        check_costs(costs)
        if costs.unit == "rows":
            return cls(compute=compute)

        def work(hundredths: int) -> Work:
            return cls(compute=hundredths / 100).work(steps)

        return cls(compute=costs.most(work, compute, steps, least=100) / 100)

    @property
    def most(self) -> float:
        """Rollouts from fresh noise, per returned image, at most."""
        return min(self.iterations or math.inf, self.compute or math.inf)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return (math.floor(min(self.batch, self.most)),)

    @property
    def draws(self) -> int:
        """Particles per returned image that are drawn, at most."""
        return math.floor(self.most)

    def points(self, steps: int) -> list[int]:
        """Denoiser calls before every branching state; the last step has no noise to choose."""
        points = {max(math.floor(f * steps + 1e-9), 1) for f in self.at}
        return sorted(point for point in points if point < steps - 1)

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, at most."""
        return math.floor(self.most * steps + 1e-9)

    def work(self, steps: int) -> Work:
        """Its rows, and as many images as rollouts from the latest states would finish."""
        rows = self.cost(steps)
        shortest = min((steps - 1 - point for point in self.points(steps)), default=steps)
        leaves = 1 + max(rows - steps, 0) // max(shortest, 1)
        return Work.best_of(rows, leaves)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Grow a tree per prompt, then take its best leaves, or sample some."""
        if self.choose == "sample":
            ctx.judging.picking.refuse("choose='sample'")
        groves = yield from self.grow(ctx, start)
        taken = [leaf for grove in groves for leaf in self._leaves(ctx, grove)]
        x = torch.stack([leaf.x for leaf in taken if leaf.x is not None])
        return Population(x, tuple(leaf.name for leaf in taken))

    def grow(self, ctx: Context, start: Population) -> Asking[list[Grove]]:
        """The trees, one per prompt of `start`, when there is nothing left to spend."""
        steps, first = len(ctx.steps), start.ids[0][1]
        mover, start = Mover.of(ctx, start, type(self).__name__, self.kernel, self.eta, jumps=True)
        points = [p for p in self.points(steps) if not mover.is_silent(ctx.steps[p:])]
        rows = [steps, *(steps - 1 - point for point in points)]
        seeds = {prompt: ctx.starts.seeds[prompt] for prompt in start.prompts}
        groves = {p: Grove(p, rows, row_seed(seed, _SEARCHING)) for p, seed in seeds.items()}
        rollouts = Rollouts(ctx, mover, start, first, groves, points)
        while picks := self._picks(ctx, list(groves.values())):
            ctx.evaluate((yield from rollouts.round(picks)))
            for grove in groves.values():
                grove.back_up(self._policy, ctx.finals)
        return list(groves.values())

    @property
    def _policy(self) -> Policy:
        return Policy(self.lam, self.explore, self.policy == "sample", self.widen, self.standardise)

    def _picks(self, ctx: Context, groves: Sequence[Grove]) -> list[Node]:
        """The states to expand in this round, prompt by prompt; none when it is over."""
        picks: list[Node] = []
        left = ctx.left() / len(ctx.prompts)
        for grove in groves:
            most = self._affordable(ctx, grove, left)
            first = next((depth for depth, count in enumerate(most) if count), None)
            if first is None:
                continue
            node = grove.pick(self._policy, first)
            also = range(most[node.depth] - 1)
            own = [node, *(grove.pick(self._policy, first, node.depth) for _ in also)]
            grove.started += len(own)
            grove.spent += len(own) * grove.rows[node.depth]
            picks += own
        return picks

    def _affordable(self, ctx: Context, grove: Grove, left: float) -> list[int]:
        """How many expansions at every depth this round may have; `left` is what a budget leaves.

        `compute` is spent on whole rounds, since lanes that are not full cost as much as full ones.
        Before anything is finished a budget holds a plain call back, so the first round does.
        """
        steps, lane = len(ctx.steps), ctx.lane
        size = self.populations[0] * ctx.images
        own = (self.compute or math.inf) * steps * ctx.images - grove.spent + 1e-6
        count = min(size, (self.iterations or math.inf) * ctx.images - grove.started)
        if not grove.leaves:
            return [int(min(count, max(_times(lane * steps, left) - 1, 1) * lane))]
        fits = [_times(lane * rows, left) * lane for rows in grove.rows]
        paid = [rows * size <= own for rows in grove.rows]
        return [int(min(count, fit)) if pay else 0 for fit, pay in zip(fits, paid, strict=True)]

    def _leaves(self, ctx: Context, grove: Grove) -> list[Node]:
        """The answer for one prompt."""
        if self.choose == "best":
            names = [leaf.name for leaf in grove.leaves]
            values = [ctx.judging.final(name) for name in names]
            return [grove.leaves[row] for row in ctx.judging.pick(names, values, ctx.images)]
        seed = row_seed(ctx.starts.seeds[grove.prompt], _CHOOSING)
        generator = torch.Generator().manual_seed(seed)
        chosen = without_replacement(grove.log_shares()[None], ctx.images, generator)
        return [grove.leaves[row] for row in chosen[0].tolist()]


def _times(price: float, purse: float) -> float:
    """How many times `purse` pays `price`."""
    return purse if purse == math.inf else purse // price
