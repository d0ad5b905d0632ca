"""Diffusion latent beam search: branch, look ahead, keep the best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

from steer.core.checks import plain_calls, predicate, whole
from steer.core.costs import ROWS, Costs, Work, check_costs
from steer.core.types import Population, Search
from steer.core.when import When, between
from steer.methods.particles.branching import Mover, check_moves, look_ahead
from steer.search.context import Context
from steer.search.kernels.choose import further_calls
from steer.search.kernels.draws import Kernel
from steer.search.method import Method


T = TypeVar("T")
_EXAMPLE = "Beam(beams=4, candidates=2, lookahead=1)"
_ALL = between(0.0, 1.0)


class Turn(NamedTuple):
    """What one step of the grid does: `beams` rows get `children` each, and `keep` go on."""

    beams: int
    children: int
    keep: int


@dataclass(frozen=True)
class Beam(Method):
    """Keep `beams` particles per image; draw `candidates` next steps of each, keep the best.

    Diffusion latent beam search with lookahead (Oshima et al. 2025, DLBS, arXiv:2501.19252). At
    every step one denoiser output per beam gives a move, and `candidates` draws of its noise give
    that many next latents. Each is judged by the reward of the clean latents that `lookahead`
    deterministic DDIM steps, spread evenly from there to the end, lead to; the best of all
    candidates of a prompt are the next beams. With `lookahead=1` that is the x0 preview.

    A candidate's first lookahead call is the call that its next step needs, so a beam that goes on
    asks nothing twice: with T steps the cost is

        beams * (T + sum over branching steps i of (candidates * L_i - 1)),  L_i = min(L, T - 1 - i)

    where the published code spends `beams` more at each. The last step has no noise to choose, and
    never branches. Outside the window `when` every beam takes its own next step.

    `beams` may be a list, spread evenly over the selections: `(8, 4, 2)` is DSearch's shrinking
    beam (arXiv:2503.02039). With a sampler that draws noise itself the first beam's first children
    are the plain call's own trajectory, as long as it is kept; it is dropped like any other, so
    unlike `BestOfN` the result may be worse than the plain image.

    Args:
        beams: Particles that go on, per returned image; a number or a list of them.
        candidates: Next latents drawn for every beam.
        lookahead: Deterministic steps to the end that judge a candidate, at least 1.
        when: Steps that branch.
        eta: Share of fresh noise in DDIM moves, in (0, 1].
        kernel: Which law moves them, as for `SMC`. Steps at which it draws no noise do not branch,
            such as the first one of flow models.

    Raises:
        ValueError: Arguments of the wrong kind; when called: no step but the last at which `when`
            holds, or none of them draws noise.
        UnsupportedSchedulerError: When called: a kernel that the schedule does not have.
    """

    beams: int | tuple[int, ...] = 2
    candidates: int = 2
    lookahead: int = 1
    when: When = _ALL
    eta: float = 1.0
    kernel: str | Kernel = "auto"

    reorders: ClassVar[bool] = True
    """Rows change places between steps: caches of activations per row cannot follow."""

    def __post_init__(self) -> None:
        if isinstance(self.beams, list):
            object.__setattr__(self, "beams", tuple(self.beams))
        check_counts("beams", self.beams, _EXAMPLE)
        whole("candidates", self.candidates, _EXAMPLE)
        whole("lookahead", self.lookahead, f"{_EXAMPLE}, which judges x0 previews")
        predicate(self.when, "Beam(4, when=between(0.3, 1))")
        check_moves(self.kernel, self.eta)

    @classmethod
    def for_compute(cls, compute: float, steps: int, costs: Costs = ROWS) -> Beam:
        """Two candidates for as many beams as `compute` plain calls pay for; one below that.

        `costs` says what a row, a decode, a score cost; by default rows alone count.

        Raises:
            ValueError: `compute` below 1.
        """
        plain_calls(compute)
        check_costs(costs)
        beams = costs.most(lambda beams: cls(beams).work(steps), compute, steps)
        fits = costs.fits(cls(beams).work(steps), compute, steps)
        return cls(beams) if fits else cls(1, candidates=1)

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image."""
        sizes = counts(self.beams)
        return (*sizes, *(self.candidates * size for size in sizes))

    def plan(self, steps: int, silent: Collection[int] = ()) -> list[Turn]:
        """What every step of a run of `steps` does; those that draw no noise do not branch."""
        branching = set(self.when.indices(steps)) - {steps - 1, *silent}
        branching = branching if self.candidates > 1 else set()
        alive, done, turns = counts(self.beams)[0], 0, []
        for index in range(steps):
            children, keep = 1, alive
            if index in branching:
                children, done = self.candidates, done + 1
                keep = spread(counts(self.beams), done, len(branching) + 1)
            turns.append(Turn(alive, children, min(keep, alive * children)))
            alive = turns[-1].keep
        return turns

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, at most: fewer where a noise level is visited twice, or
        no noise is drawn.
        """
        plan = self.plan(steps)
        rows = plan[0].beams
        for index, turn in enumerate(plan[:-1]):
            ahead = min(self.lookahead, steps - 1 - index) if turn.children > 1 else 1
            ahead += further_calls(self.kernel, index, steps)
            rows += turn.beams * turn.children * ahead
        return rows

    def work(self, steps: int) -> Work:
        """Its rows, and previews of all candidates at every step that branches."""
        plan = self.plan(steps)
        previews = sum(turn.beams * turn.children for turn in plan[:-1] if turn.children > 1)
        return Work.best_of(self.cost(steps), plan[-1].keep, previews)

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Branch, move, look ahead, keep; one denoiser call for all candidates at a time."""
        mover, beams = Mover.of(ctx, start, type(self).__name__, self.kernel, self.eta)
        plan = self._plan(ctx, mover)
        output = yield from mover.ask(beams, ctx.steps[0])
        for step, turn in zip(ctx.steps, plan, strict=True):
            rows, beams = mover.branch(beams, turn.children, step)
            beams = yield from mover.step(step, beams, output[rows])
            if step.index + 1 == len(plan):
                break
            following = ctx.steps[step.index + 1]
            output = yield from mover.ask(beams, following)
            if turn.children > 1:
                clean = yield from look_ahead(ctx, beams, output, following, self.lookahead)
                values = ctx.evaluate(clean, following)
                kept = sorted(ctx.top(beams, values, turn.keep * ctx.images))
                beams, output = mover.keep(beams, kept, following), output[kept]
        return ctx.winners(beams)

    def _plan(self, ctx: Context, mover: Mover) -> list[Turn]:
        silent = [step.index for step in ctx.steps if mover.is_silent([step])]
        plan = self.plan(len(ctx.steps), silent)
        if self.candidates > 1 and len(plan) > 1 and all(turn.children == 1 for turn in plan):
            raise ValueError(
                f"when={self.when!r} holds at no step of {len(plan)} before the last at which "
                f"kernel={self.kernel!r} draws noise, so nothing would branch; name other steps, "
                "run more of them, or use BestOfN"
            )
        return plan


def counts(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """A number, or numbers, as numbers."""
    return (value,) if isinstance(value, int) else value


def check_counts(name: str, value: object, example: str) -> None:
    """Raise ValueError unless `value` is a positive whole number or a tuple of such."""
    if value == ():
        raise ValueError(f"{name}=(): must have an entry; write {example}")
    for count in value if isinstance(value, tuple) else (value,):
        whole(name, count, example)


def spread(values: Sequence[T], place: int, places: int) -> T:
    """What stands at `place` of `places` where `values` are spread evenly over them."""
    return values[place * len(values) // places]
