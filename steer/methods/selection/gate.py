"""Best of mini-N in a loop: fresh rounds until a reward threshold is cleared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steer.core.checks import whole
from steer.core.errors import NotAcceptedError
from steer.core.types import Population, Search
from steer.rewards.combine.weighted import check_absolute
from steer.rewards.thresholds.threshold import Threshold
from steer.search.context import Context
from steer.search.method import Method


@dataclass(frozen=True)
class Gate:
    """Run `method` in rounds of fresh particles until its winners clear `threshold`.

    Best-of-mini-N-in-loop (arXiv:2510.04087): easy prompts stop after one round, hard ones go on.
    A prompt is done when all of its returned images clear the threshold, and then costs nothing
    further but its place in the pipeline's batch.

    Args:
        method: What a round runs.
        threshold: A reward, a `Threshold` (also one with levels per prompt), the path of a saved
            one, or an object with `accept(reward) -> bool`.
        max_rounds: Rounds at most.
        on_reject: What to do with a prompt that never clears: return the `"best"` found, marked
            `accepted=False`, or `"raise"`.

    Raises:
        ValueError: Arguments of the wrong kind, or a threshold file that cannot be read. When
            called: a `Threshold` of another reward or version, or without a level for a prompt; a
            reward that only ranks candidates.
    """

    method: Method
    threshold: Any
    max_rounds: int = 4
    on_reject: Literal["best", "raise"] = "best"

    def __post_init__(self) -> None:
        example = "Gate(BestOfN(4), threshold=0.6, max_rounds=4)"
        whole("max_rounds", self.max_rounds, example)
        if not isinstance(self.method, Method):
            raise ValueError(f"method={self.method!r}: must be a method; write {example}")
        if isinstance(self.threshold, str | Path):
            object.__setattr__(self, "threshold", Threshold.load(self.threshold))
        number = isinstance(self.threshold, int | float) and self.threshold == self.threshold
        if not number and not callable(getattr(self.threshold, "accept", None)):
            raise ValueError(
                f"threshold={self.threshold!r}: must be a number, a Threshold, the path of one, or "
                f"have accept(reward); write {example}"
            )
        if self.on_reject not in ("best", "raise"):
            raise ValueError(f"on_reject={self.on_reject!r}: must be 'best' or 'raise'")

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return self.method.populations

    @property
    def draws(self) -> int:
        """Particles per returned image that all rounds together draw, at most."""
        return self.max_rounds * draws(self.method)

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, if every round is needed."""
        return self.max_rounds * self.method.cost(steps)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Rounds of `method`; every round draws particles that no round before it had."""
        self._check(ctx)
        first, stride = start.ids[0][1], draws(self.method) * ctx.images
        size = self.populations[0] * ctx.images
        best, population, waiting = [], start, start.prompts
        for number in range(self.max_rounds):
            best.append((yield from self.method(ctx, population)))
            best = [merge(ctx, best)]
            waiting = [p for p in waiting if not verdict(ctx, best[0], p, self.threshold)]
            if not waiting or number + 1 == self.max_rounds:
                break
            begin = first + (number + 1) * stride
            population = ctx.draw(range(begin, begin + size), waiting)
        if self.on_reject == "raise" and waiting:
            raise NotAcceptedError(self._complaint(ctx, best[0], waiting[0]))
        return best[0]

    def _check(self, ctx: Context) -> None:
        """Refuse at the first step, not after a round."""
        check_absolute(ctx.reward, f"threshold={self.threshold!r}")
        if isinstance(self.threshold, Threshold):
            self.threshold.check(ctx.reward)
            for text in ctx.prompts:
                self.threshold.at(text)

    def _complaint(self, ctx: Context, best: Population, prompt: int) -> str:
        reward = max(ctx.finals[name] for name in best.ids if name[0] == prompt)
        return (
            f"prompt {prompt} ({ctx.prompts[prompt]!r}): the best reward of {self.max_rounds} "
            f"rounds is {reward:.4g}, which threshold={self.threshold!r} rejects; raise "
            "max_rounds, lower the threshold, or use on_reject='best'"
        )


def draws(method: Method) -> int:
    """Particles per returned image that a method draws: its first population, or what it says."""
    return getattr(method, "draws", method.populations[0])


def merge(ctx: Context, rounds: list[Population]) -> Population:
    """The best finished particles of several rounds, per prompt."""
    everyone = Population.join(rounds)
    ctx.evaluate(everyone)
    return ctx.winners(everyone)


def verdict(ctx: Context, best: Population, prompt: int, threshold: Any) -> bool:
    """Whether a prompt's best so far clear the threshold; marks them and logs the round."""
    names = [name for name in best.ids if name[0] == prompt]
    rewards = [ctx.finals[name] for name in names]
    text, level = ctx.prompts[prompt], None
    if isinstance(threshold, int | float):
        level, flags = threshold, [reward >= threshold for reward in rewards]
    elif isinstance(threshold, Threshold):
        level, flags = threshold.at(text), [threshold.accept(r, text) for r in rewards]
    else:
        flags = [bool(threshold.accept(reward)) for reward in rewards]
    ctx.accept(prompt, flags)
    accepted = all(flags) and len(flags) >= ctx.images
    highest = max(rewards, default=None)
    ctx.log("round", prompt=prompt, best=highest, threshold=level, accepted=accepted)
    return accepted
