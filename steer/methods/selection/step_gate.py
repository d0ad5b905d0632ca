"""Rounds of fresh particles, of which the hopeless are dropped on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steer.core.checks import whole
from steer.core.types import Population, Search, Step
from steer.methods.selection.gate import verdict
from steer.rewards.combine.weighted import check_absolute
from steer.rewards.thresholds.conformal import Calibration
from steer.search.context import Context


@dataclass(frozen=True)
class StepGate:
    """A gate that need not see the end: previews drop what cannot clear the threshold.

    Rounds of `n` particles, as `Gate(BestOfN(n), threshold)` runs them (arXiv:2510.04087); at the
    calibrated steps, particles whose preview is too far below the threshold are dropped, and a
    round in which none is left ends there. A prompt is done when its returned images clear the
    threshold. With `alpha` the calibration's, at most a share `alpha` of the particles that would
    have been accepted is dropped (`Calibration` says what that rests on). The bound is for
    particles as they are drawn, so for the first round: later rounds only see prompts that earlier
    ones could not serve, whose rate may be higher.

    There is always an image: in the last round the best previews go on, as many as a prompt still
    lacks, and what they come to is returned, marked `accepted=False` unless it clears after all.
    The plain call's own image is dropped like any other, so the result may be below it.

    Survivors differ in number, so that lanes wider than 1 are padded and save less; over several
    prompts a lane ends when all of them need it no more.

    Args:
        n: Particles per returned image and round.
        calibration: Which previews are hopeless, and the threshold; or the path of a saved one.
        max_rounds: Rounds at most.

    Raises:
        ValueError: Numbers that are none, something else than a calibration, a file that cannot be
            read. When called: a run that the calibration does not cover (reward, version, number of
            steps, noise levels), or a reward that only ranks candidates.
    """

    n: int
    calibration: Calibration
    max_rounds: int = 1

    def __post_init__(self) -> None:
        example = "StepGate(4, calibration='calibration.json', max_rounds=4)"
        whole("n", self.n, example)
        whole("max_rounds", self.max_rounds, example)
        if isinstance(self.calibration, str | Path):
            object.__setattr__(self, "calibration", Calibration.load(self.calibration))
        if not isinstance(self.calibration, Calibration):
            raise ValueError(
                f"calibration={self.calibration!r}: must be a Calibration or the path of one; "
                f"write {example}"
            )

    @property
    def populations(self) -> tuple[int, ...]:
        """Population sizes per returned image: any, down to one."""
        return (self.n, 1)

    @property
    def draws(self) -> int:
        """Particles per returned image that all rounds together draw, at most."""
        return self.max_rounds * self.n

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, if every round is needed and nothing is dropped."""
        return self.max_rounds * self.n * steps

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Rounds, each to its end or to the step where it has nothing left."""
        check_absolute(ctx.reward, "calibration")
        self.calibration.check(ctx.reward, ctx.steps, ctx.prompts)
        first, size = start.ids[0][1], self.n * ctx.images
        ended, population, waiting = start.take([]), start, start.prompts
        for number in range(self.max_rounds):
            last = number + 1 == self.max_rounds
            lacking = {p: self._lacking(ctx, ended, p) if last else 0 for p in waiting}
            done = yield from self._round(ctx, population, lacking)
            ended = Population.join([ended, done])
            best = ended.take(ctx.top(ended, ctx.evaluate(ended), ctx.images))
            threshold = self.calibration.threshold
            waiting = [p for p in waiting if not verdict(ctx, best, p, threshold)]
            if not waiting or last:
                break
            begin = first + (number + 1) * size
            population = ctx.draw(range(begin, begin + size), waiting)
        winners = ctx.winners(ended)
        self._mark(ctx, winners)
        return winners

    def _round(self, ctx: Context, start: Population, lacking: dict[int, int]) -> Search:
        """The particles of one round that were not dropped, finished; maybe none."""
        alive, solver = start, ctx.solver(start)
        for step in ctx.steps:
            output = yield from ctx.denoise(alive, step)
            if step.index in self.calibration.steps:
                previews = alive.at(step.x0(alive.x, output))
                rows = self._survivors(ctx, previews, step, lacking)
                if not rows:
                    return alive.take([])
                solver.gather(rows)
                alive, output = alive.take(rows), output[rows]
            alive = alive.at(solver.step(step, alive.x, output, alive.ids))
        return alive

    def _survivors(
        self, ctx: Context, previews: Population, step: Step, lacking: dict[int, int]
    ) -> list[int]:
        """Rows that go on, in their old order: those above the cut, and the best that must."""
        rows = {p: [r for r, name in enumerate(previews.ids) if name[0] == p] for p in lacking}
        if all(len(own) <= lacking[p] for p, own in rows.items()):
            return list(range(len(previews)))
        values = ctx.evaluate(previews, step).tolist()
        texts = [ctx.prompts[prompt] for prompt, _ in previews.ids]
        doomed = self.calibration.doomed(step.index, values, texts)
        kept = []
        for prompt, own in rows.items():
            ranked = sorted(own, key=lambda row: (doomed[row], -values[row]))
            alive = max(sum(not doomed[row] for row in own), lacking[prompt])
            chosen = sorted(ranked[:alive])
            kept += chosen
            names = {row: previews.ids[row][1] for row in own}
            ctx.log(
                "select",
                step=step.index,
                prompt=prompt,
                kept=[names[row] for row in chosen],
                dropped=[names[row] for row in own if row not in chosen],
            )
        return sorted(kept)

    @staticmethod
    def _lacking(ctx: Context, ended: Population, prompt: int) -> int:
        return max(ctx.images - sum(name[0] == prompt for name in ended.ids), 0)

    def _mark(self, ctx: Context, winners: Population) -> None:
        """Which of the returned images clear the threshold, in their order."""
        threshold = self.calibration.threshold
        for prompt in winners.prompts:
            names = [name for name in winners.ids if name[0] == prompt]
            text = ctx.prompts[prompt]
            ctx.accept(prompt, [threshold.accept(ctx.finals[name], text) for name in names])
