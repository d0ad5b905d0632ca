"""One method after another: the second starts from the noises of the first's best."""

from __future__ import annotations

from dataclasses import dataclass

from steer.core.costs import Work
from steer.core.types import Name, Population, Search
from steer.search.context import Context
from steer.search.method import Method, check_method


@dataclass(frozen=True)
class Then(Method):
    """Run `first`; run `second` from the initial noises of its best particles; keep the best.

    `Then(BestOfN(8), NoiseOptimization())` is CARINOX (arXiv:2509.17458): choose among random
    noises, then climb from the best. `Then(BestOfN(8), NoiseOptimization(starts=2))` climbs from
    the two best. What `first` finished stays a candidate, so the result is never worse than
    `first` alone under the reward.

    `first` is a method whose finished particles come from a noise of their own (BestOfN, Prune,
    NoiseSearch by neighbours or evolution, NoiseOptimization, a Gate or Budget of those).

    Args:
        first: What finds the noises.
        second: What starts from them, `second.populations[0]` per returned image.

    Raises:
        ValueError: Not methods, a `second` that draws noises of its own; when called: `first`
            finished fewer particles than `second` starts from.
    """

    first: Method
    second: Method

    def __post_init__(self) -> None:
        example = "Then(BestOfN(8), NoiseOptimization())"
        for name in ("first", "second"):
            check_method(name, getattr(self, name), example)
        if self.second.draws != self.second.populations[0]:
            raise ValueError(
                f"second={self.second!r}: draws noises of its own in later rounds; put it outside, "
                "as in Gate(Then(BestOfN(8), NoiseOptimization()), threshold=0.6)"
            )

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes of both, one after the other."""
        return (*self.first.populations, *self.second.populations)

    @property
    def draws(self) -> int:
        """Particles per returned image that `first` draws; `second` draws none."""
        return self.first.draws

    @property
    def reorders(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether either changes the places of rows."""
        return self.first.reorders or self.second.reorders

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, at most."""
        return self.first.cost(steps) + self.second.cost(steps)

    def work(self, steps: int) -> Work:
        """That of both, and the images of both ends."""
        both = self.first.work(steps) + self.second.work(steps)
        return both + Work(decodes=2, scores=2)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Both, one after the other."""
        known = set(ctx.finals)
        winners = yield from self.first(ctx, start)
        ctx.evaluate(winners)
        best = self._noises(ctx, start.prompts, known)
        others = yield from self.second(ctx, best)
        ctx.evaluate(others)
        return ctx.winners(Population.join([winners, others]))

    def _noises(self, ctx: Context, prompts: list[int], known: set[Name]) -> Population:
        """The initial noises of the best that `first` finished, as particles of their own."""
        wanted = self.second.populations[0] * ctx.images
        chosen: list[Name] = []
        for prompt in prompts:
            names = [name for name in ctx.finals if name[0] == prompt and name not in known]
            names.sort(key=ctx.judging.rank)
            if len(names) < wanted:
                raise ValueError(
                    f"second={self.second!r} starts from {wanted} noises per prompt, and "
                    f"first={self.first!r} finished {len(names)}: let it finish more"
                )
            chosen += names[:wanted]
        noises = ctx.initial(chosen)
        copies = ctx.starts.adopt(noises.x, [prompt for prompt, _ in chosen], chosen)
        ctx.tell_descent("branch", copies.ids, None, chosen)
        return copies
