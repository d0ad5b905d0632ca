"""Best of as many as it takes: a prompt draws until one more candidate is not worth its price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steer.core.checks import one_of, positive, whole
from steer.core.costs import Work
from steer.core.types import Population, Search
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.stopping import Stopping
from steer.rewards.parts import check_absolute
from steer.rewards.thresholds.prior import Prior
from steer.search.context import Context
from steer.search.method import Method


_EXAMPLE = "Adaptive(16, price=0.05)"
_SHARED = 4  # times n that one prompt may draw, of what the others leave


@dataclass(frozen=True)
class Adaptive(Method):
    """Best of n that stops for a prompt when its best reward is good enough for that prompt.

    A prompt goes on while the next candidate is expected to add more than `price` to the rewards
    that would be returned: while `E max(r - kept, 0) > price`, where `kept` is the best so far (of
    several returned images, the worst of them). That is to stop at the reservation price tau,
    `E max(r - tau, 0) = price` (Weitzman 1979; for best-of-N: arXiv:2510.01394). The law of r is
    learned as rewards come in: a normal-inverse-gamma prior on normal scores of the reward, updated
    by the upper half of the prompt's own, and its t predictive (Bayesian stopping as in
    arXiv:2510.15945, which has plain Gaussian rewards). Only the next candidate is looked ahead to.

    The prior is `prior`; without one, what the first `least` candidates of all prompts of the same
    call say, where there are four prompts or more; and none for fewer, so that a prompt's own
    rewards alone decide (from the third on). Nothing is carried over from earlier calls.

    With `share`, `n` is the mean over the prompts of a call: what prompts leave goes where the
    next candidate is expected to add most, up to `4 n` for one of them (as the two stages of
    arXiv:2505.12050, but given the best so far). `price=0` spends all of it.

    Args:
        n: Particles per returned image at most, at least 1.
        price: What one more particle must be expected to add, at least 0 (which never stops). In
            standard deviations, and with a Gaussian that is known: 0.2, 0.1, 0.05, 0.02 and 0.01
            stop after 3, 5.5, 10, 21 and 38 particles on average; rewards with a ceiling stop
            earlier.
        prior: A `Prior`, the path of a saved one, or `None`.
        least: Particles per returned image before anything is decided; all, where `n` is less.
        batch: Particles per returned image that are drawn together from then on. Does not depend
            on the lane width, so results do not.
        unit: Of `price`: `"sd"`, the pooled standard deviation of a prompt's rewards (of the prior,
            or of this call), or the `"reward"`'s own.
        share: Whether prompts of one call share `n` times their number.

    Raises:
        ValueError: Arguments of the wrong kind. When called: a prior of another reward, or a reward
            that only ranks candidates.
    """

    needs_loop = False

    n: int
    price: float = 0.05
    prior: Prior | None = None
    least: int = 2
    batch: int = 2
    unit: Literal["sd", "reward"] = "sd"
    share: bool = False

    def __post_init__(self) -> None:
        for name in ("n", "least", "batch"):
            whole(name, getattr(self, name), _EXAMPLE)
        positive("price", self.price, zero=True, none=False)
        one_of("unit", self.unit, ("sd", "reward"))
        if not isinstance(self.share, bool):
            raise ValueError(f"share={self.share!r}: must be True or False")
        if isinstance(self.prior, str | Path):
            object.__setattr__(self, "prior", Prior.load(self.prior))
        if self.prior is not None and not isinstance(self.prior, Prior):
            raise ValueError(
                f"prior={self.prior!r}: must be a Prior, the path of one, or None; write "
                "Adaptive(16, prior=steer.rewards.Prior.fit(pilots.scores()))"
            )

    @property
    def populations(self) -> tuple[int, ...]:
        """The first candidates, then the batches, and what is left for the last one."""
        first = min(self.least, self.n)
        rest = self.draws - first
        sizes = {first, *([self.batch] if rest >= self.batch else []), rest % self.batch}
        return (first, *sorted(sizes - {first, 0}, reverse=True))

    @property
    def draws(self) -> int:
        """Particles per returned image that one prompt may draw."""
        return self.n * (_SHARED if self.share and self.n > self.least else 1)

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, if no prompt stops early."""
        return self.n * steps

    def work(self, steps: int) -> Work:
        """As best of n, at most."""
        return BestOfN(self.n).work(steps)

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps, at most."""
        return self.n * len(indices)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """The first candidates of every prompt, then batches for those that go on."""
        if self.n == 1:
            return (yield from ctx.sample(start))
        self._check(ctx)
        rule, finished = self.rule(ctx.images), start.take([])
        first, population = start.ids[0][1], start
        while True:
            for part in ctx.groups(population):
                done = yield from ctx.sample(part)
                ctx.evaluate_lanes(done)
                finished = Population.join([finished, done])
            rewards, drawn = _so_far(ctx, finished)
            if population is start:
                rule.learn(rewards)
            counts = rule.more(rewards, drawn)
            if not counts:
                break
            population = _draw(ctx, first, drawn, counts)
        _tell(ctx, rule, rewards, drawn)
        return ctx.winners(finished)

    def rule(self, images: int = 1) -> Stopping:
        """What decides during one call, which returns so many images per prompt."""
        return Stopping(
            n=self.n,
            most=self.draws,
            price=self.price,
            unit=self.unit,
            batch=self.batch,
            images=images,
            prior=self.prior,
        )

    def _check(self, ctx: Context) -> None:
        """Refuse at the first step, not after the first candidates."""
        check_absolute(ctx.reward, f"price={self.price!r}")
        if self.prior is not None:
            self.prior.check(ctx.reward)


def _so_far(ctx: Context, finished: Population) -> tuple[dict[int, list[float]], dict[int, int]]:
    """By prompt the rewards of what may be returned, and how many candidates were drawn."""
    rewards: dict[int, list[float]] = {prompt: [] for prompt in finished.prompts}
    drawn = dict.fromkeys(rewards, 0)
    for name in finished.ids:
        drawn[name[0]] += 1
        if name not in ctx.judging.flagged:
            rewards[name[0]].append(ctx.judging.final(name))
    return rewards, drawn


def _draw(ctx: Context, first: int, drawn: dict[int, int], counts: dict[int, int]) -> Population:
    """The next candidates, numbered on from those that a prompt has."""
    alike: dict[range, list[int]] = {}
    for prompt, count in counts.items():
        begin = first + drawn[prompt]
        alike.setdefault(range(begin, begin + count), []).append(prompt)
    return Population.join([ctx.draw(particles, own) for particles, own in alike.items()])


def _tell(
    ctx: Context, rule: Stopping, rewards: dict[int, list[float]], drawn: dict[int, int]
) -> None:
    """Log how many candidates every prompt drew, and the level that was enough for it."""
    price = rule.reward_price(rewards)
    for prompt, own in rewards.items():
        level = rule.outlook(own).reservation(price)
        ctx.log(
            "stop",
            prompt=prompt,
            drawn=drawn[prompt],
            best=max(own, default=None),
            level=level if math.isfinite(level) else None,
        )
