"""Best of mini-N in a loop: fresh rounds until a reward threshold is cleared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from steer.context import Context
from steer.errors import NotAcceptedError
from steer.methods.checks import whole
from steer.types import Method, Population, Search


@dataclass(frozen=True)
class Gate:
    """Run `method` in rounds of fresh particles until its winners clear `threshold`.

    Best-of-mini-N-in-loop (arXiv:2510.04087): easy prompts stop after one round, hard ones go on.
    A prompt is done when all of its returned images clear the threshold, and then costs nothing
    further but its place in the pipeline's batch.

    Args:
        method: What a round runs.
        threshold: A reward, or an object with `accept(reward) -> bool`.
        max_rounds: Rounds at most.
        on_reject: What to do with a prompt that never clears: return the `"best"` found, marked
            `accepted=False`, or `"raise"`.

    Raises:
        ValueError: Arguments of the wrong kind.
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
        number = isinstance(self.threshold, int | float) and self.threshold == self.threshold
        if not number and not callable(getattr(self.threshold, "accept", None)):
            raise ValueError(
                f"threshold={self.threshold!r}: must be a number or have accept(reward); write "
                f"{example}"
            )
        if self.on_reject not in ("best", "raise"):
            raise ValueError(f"on_reject={self.on_reject!r}: must be 'best' or 'raise'")

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return self.method.populations

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, if every round is needed."""
        return self.max_rounds * self.method.cost(steps)

    def accepts(self, reward: float) -> bool:
        """Whether a reward clears the threshold."""
        if isinstance(self.threshold, int | float):
            return reward >= self.threshold
        return bool(self.threshold.accept(reward))

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Rounds of `method`; every round draws particles that no round before it had."""
        size = self.populations[0] * ctx.images
        best, population, waiting = [], start, start.prompts
        for number in range(self.max_rounds):
            best.append((yield from self.method(ctx, population)))
            best = [self._merge(ctx, best)]
            waiting = [prompt for prompt in waiting if not self._verdict(ctx, best[0], prompt)]
            if not waiting or number + 1 == self.max_rounds:
                break
            population = ctx.draw(range((number + 1) * size, (number + 2) * size), waiting)
        if self.on_reject == "raise" and waiting:
            raise NotAcceptedError(self._complaint(ctx, best[0], waiting[0]))
        return best[0]

    def _merge(self, ctx: Context, rounds: list[Population]) -> Population:
        """The best so far, per prompt."""
        everyone = Population.join(rounds)
        ctx.evaluate(everyone)
        return ctx.winners(everyone)

    def _verdict(self, ctx: Context, best: Population, prompt: int) -> bool:
        """Whether a prompt's best so far clear the threshold."""
        rewards = [ctx.finals[name] for name in best.ids if name[0] == prompt]
        ctx.accepted[prompt] = [self.accepts(reward) for reward in rewards]
        accepted = all(ctx.accepted[prompt])
        threshold = self.threshold if isinstance(self.threshold, int | float) else None
        ctx.log("round", prompt=prompt, best=max(rewards), threshold=threshold, accepted=accepted)
        return accepted

    def _complaint(self, ctx: Context, best: Population, prompt: int) -> str:
        reward = max(ctx.finals[name] for name in best.ids if name[0] == prompt)
        return (
            f"prompt {prompt} ({ctx.prompts[prompt]!r}): the best reward of {self.max_rounds} "
            f"rounds is {reward:.4g}, which threshold={self.threshold!r} rejects; raise "
            "max_rounds, lower the threshold, or use on_reject='best'"
        )
