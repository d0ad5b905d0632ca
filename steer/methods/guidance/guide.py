"""Any search with its answers moved up the reward's gradient on the way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steer.core.checks import positive, predicate
from steer.core.sphere import radius, unit
from steer.core.types import Population, Query, Search, wide
from steer.core.when import When, between
from steer.methods.selection.gate import draws
from steer.methods.selection.prune import Prune
from steer.search.context import Context
from steer.search.guidance import apart, check_gradient, reward_gradient, shifted, window
from steer.search.method import Method


_USUAL = between(0.5, 0.95)
_EXAMPLE = "Guide(Prune(8, (4, 2), (0.5, 0.65)), strength=0.1, when=between(0.5, 0.95))"


@dataclass(frozen=True)
class Guide:
    """Run `method`, and guide what it samples: selection and gradient in one trajectory.

    Every model output that the method is answered at the steps `when` implies a clean prediction
    that is moved up the reward first,

        x0 <- x0 + strength * |x0| * g / |g|,    g = grad r(decode(x0))

    as `GradientGuidance` does (MPGD, He et al. 2024, arXiv:2311.16424): the denoiser is never
    differentiated, and no denoiser call is added. `Guide(BestOfN(n), ...)` is
    `GradientGuidance(n, ...)`; around `Prune` only particles that are worth it are guided, since
    the usual window opens when half of the steps are done and the first cut has been made.

    Calls that the method differentiates itself are answered as they are. As with every gradient,
    watch a `judge`.

    Args:
        method: Any method; it asks and selects as ever.
        strength: Length of the shift of x0, as a share of its norm; 0 guides nothing.
        when: Steps whose answers are guided.

    Raises:
        ValueError: Arguments of the wrong kind; when called: a reward that only ranks candidates.
        RewardError: When called: the reward is not differentiable.
        GradientError: When called: a gradient that is not finite.
    """

    method: Method
    strength: float = 0.1
    when: When = _USUAL

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise ValueError(f"method={self.method!r}: must be a method; write {_EXAMPLE}")
        positive("strength", self.strength, zero=True, none=False)
        predicate(self.when, _EXAMPLE)

    @classmethod
    def for_compute(cls, compute: float, steps: int) -> Guide:
        """`Prune` as it is planned for `compute` plain calls, guided. Raises ValueError below 1."""
        return cls(Prune.for_compute(compute, steps))

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        return self.method.populations

    @property
    def draws(self) -> int:
        """Particles per returned image that are drawn."""
        return draws(self.method)

    @property
    def reorders(self) -> bool:
        """Whether rows change places between steps."""
        return getattr(self.method, "reorders", False)

    def cost(self, steps: int) -> int:
        """Denoiser-row equivalents per returned image: those of the method."""
        return self.method.cost(steps)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """The method's own search, its questions passed on and its answers guided."""
        guided = window(self.when, len(ctx.steps), type(self).__name__) if self.strength else []
        if not guided:
            return (yield from self.method(ctx, start))
        check_gradient(ctx, type(self).__name__)
        search = self.method(ctx, apart(ctx, start))
        with ctx.frozen():
            try:
                query = next(search)
                while True:
                    output = yield query
                    if query.step.index in guided and not query.grad:
                        output = self._guided(ctx, query, output)
                    query = search.send(output)
            except StopIteration as stop:
                return stop.value
            finally:
                search.close()

    def _guided(self, ctx: Context, query: Query, output: Tensor) -> Tensor:
        """The lane's output with every particle's x0 moved; padding follows the row it repeats."""
        step = query.step
        first = {name: row for row, name in reversed(list(enumerate(query.ids)))}
        rows = sorted(first.values())
        names = tuple(query.ids[row] for row in rows)
        x0 = step.x0(wide(query.latents[rows]), wide(output[rows]))
        rewards, gradient = reward_gradient(ctx, Population(x0, names))
        shift = self.strength * radius(x0) * unit(gradient)
        ctx.tell("score", names, step, reward=rewards.tolist(), preview=True)
        ctx.tell("guide", names, step, shift=(radius(shift) / radius(x0)).flatten().tolist())
        place = {name: number for number, name in enumerate(names)}
        return shifted(step, output, shift[[place[name] for name in query.ids]])
