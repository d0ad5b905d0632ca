"""What the study of methods runs: every method at its documented defaults, and the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import steer
from steer.core.types import Population, Search
from steer.search.context import Context
from steer.search.method import Method
from steer.search.short_runs import run, short_grid


BUDGETS = (4, 7, 8, 2, 16, 1)
POOL = "pool"
BEST = "best-of-n"
SHORT = "best-of-n, 8 steps"

_PLANS: dict[str, Callable[[float, int], Method]] = {
    "prune": steer.Prune.for_compute,
    "draft": lambda c, steps: steer.Prune.for_compute(c, steps, drafts=True),
    "guided pruning": lambda c, steps: steer.Guide(steer.Prune.for_compute(c, steps)),
    "guided drafts": lambda c, steps: steer.Guide(
        steer.Prune.for_compute(c, steps, drafts=True), when=steer.between(0.7, 0.95)
    ),
    "noise optimisation": steer.methods.NoiseOptimization.for_compute,
    "noise search": steer.methods.NoiseSearch.for_compute,
    "gradient guidance": lambda c, steps: steer.Guide(
        steer.BestOfN.for_compute(c, steps), when=steer.between(0.4, 0.7)
    ),
    "best-of-n guidance": steer.methods.BestOfNGuidance.for_compute,
    "lookahead guidance": steer.methods.LookaheadGuidance.for_compute,
    "smc": steer.SMC.for_compute,
    "beam": steer.methods.Beam.for_compute,
    "blockwise": steer.methods.Blockwise.for_compute,
    "tree": steer.methods.Tree.for_compute,
}
_ALL = (2, 4, 7, 8, 16)
_CHOSEN = {"best-of-n, then climb": (4, 8), "prune": _ALL, "guided pruning": _ALL}
_CHOSEN |= {"draft": (1, *_ALL), "guided drafts": _ALL, SHORT: _ALL}
_ALONE = {"tree"}  # trees of several prompts branch at different depths: rows would be padding


def arms(compute: float, steps: int) -> list[tuple[str, Method, bool]]:
    """Name, method and whether captions go alone, of all that `compute` plain calls pay for."""
    found = []
    own = {"best-of-n, then climb": best_then_climb, SHORT: fewer_steps}
    for name, make in {**_PLANS, **own}.items():
        if compute not in _CHOSEN.get(name, (2, 4, 8, 16)):
            continue
        try:
            found.append((name, make(compute, steps), name in _ALONE))
        except ValueError:  # too small a budget, as its own error says
            continue
    return found


def best_then_climb(compute: float, steps: int) -> Method:
    """Half of the budget for best-of-N, the rest for noise optimisation from its best."""
    n = max(int(compute / 2), 1)
    climb = steer.methods.NoiseOptimization.for_compute(compute - n + 1, steps)
    return steer.Then(steer.BestOfN(n), climb)


def fewer_steps(compute: float, steps: int) -> Method:
    """Best-of-N of 8-step images: what the same budget buys whoever lowers the steps instead."""
    return Short(int(compute * steps / 8), 8)


@dataclass(frozen=True)
class Short(Method):
    """The best of `n` images of `through` DDIM steps, evenly spread over the call's own."""

    n: int
    through: int

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        return self.n * self.through

    def __call__(self, ctx: Context, start: Population) -> Search:
        """A lane at a time, from noise to image."""
        grid, finished = short_grid(ctx.steps, self.through), []
        for part in ctx.groups(start):
            latents = yield from run(ctx, part, grid, part.x.dtype)
            finished.append(part.at(latents.to(part.x.dtype)))
        return ctx.winners(Population.join(finished))


def slices(pool: int, size: int = 32) -> list[Pool]:
    """The pool in parts, the first one first."""
    return [Pool(first, min(size, pool - first)) for first in range(0, pool, size)]


@dataclass(frozen=True)
class Pool(Method):
    """Particles `first` to `first + n`, plainly sampled and scored: best-of-N is read off them."""

    first: int
    n: int

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image."""
        return self.n * steps

    def __call__(self, ctx: Context, start: Population) -> Search:
        """The pipeline's own steps, a lane at a time."""
        if self.first:
            start = ctx.draw(range(self.first, self.first + self.n), start.prompts)
        finished = []
        for part in ctx.groups(start):
            finished.append((yield from ctx.sample(part)))
        everyone = Population.join(finished)
        ctx.evaluate(everyone)
        return ctx.winners(everyone)

    def lines(
        self, out: Any, texts: Sequence[str], first: int, seed: int, seconds: float
    ) -> list[dict[str, Any]]:
        """One line per caption: reward and verdict of every particle, what one of them cost."""
        found = []
        ledger, trace = out.report.ledger, out.report.trace
        each = len(texts) * self.n
        for number, text in enumerate(texts):
            rewards = finals(trace, number)
            names = sorted(rewards)
            images = np.stack([trace.images[number, k, -1] for k in names])
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            verdicts = steer.shapes.oracle(pixels, [text] * len(names))
            found.append(
                {
                    "method": POOL,
                    "settings": repr(self),
                    "compute": float(self.n),
                    "caption": first + number,
                    "seed": seed,
                    "rewards": [round(rewards[k], 6) for k in names],
                    "oracle": [int(v.all_met) for v in verdicts],
                    "fraction": [round(v.fraction, 4) for v in verdicts],
                    "rows": round(ledger.denoiser_rows / each, 3),
                    "seconds": round(seconds / each, 4),
                }
            )
        return found


def finals(trace: Any, prompt: int) -> dict[int, float]:
    """Final rewards of one prompt, by particle."""
    scores: dict[int, float] = {}
    for row in trace.of("score"):
        if row["prompt"] == prompt and not row["preview"]:
            scores |= zip(row["particle"], row["reward"], strict=True)
    return scores
