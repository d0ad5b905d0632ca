"""Best of mini-N in a loop: fresh rounds until a reward threshold is cleared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steer.core.checks import one_of, whole
from steer.core.costs import Work
from steer.core.errors import NotAcceptedError
from steer.core.types import Population, Search
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.dropping import sample_hopeful
from steer.methods.selection.prune import Prune
from steer.rewards.parts import check_absolute
from steer.rewards.thresholds.calibration import Calibration
from steer.rewards.thresholds.threshold import Threshold
from steer.search.context import Context
from steer.search.method import Around, Method, check_method


_EXAMPLE = "Gate(BestOfN(4), threshold=0.6, max_rounds=4)"
_CALIBRATED = "Gate(BestOfN(4), calibration='calibration.json')"


@dataclass(frozen=True)
class Gate(Around):
    """Run `method` in rounds of fresh particles until its winners clear `threshold`.

    Best-of-mini-N-in-loop (arXiv:2510.04087): easy prompts stop after one round, hard ones go on.
    A prompt is done when all of its returned images clear the threshold, and then costs nothing
    further but its place in the pipeline's batch.

    With a `calibration` a round need not see the end: at the calibrated steps, particles whose
    preview is too far below the threshold are dropped, and a round in which none is left ends
    there. With `alpha` the calibration's, at most a share `alpha` of the particles that would have
    been accepted is dropped (`Calibration` says what that rests on). The bound is for particles as
    they are drawn, so for the first round: later rounds only see prompts that earlier ones could
    not serve, whose rate may be higher. There is always an image: in the last round the best
    previews go on, as many as a prompt still lacks, and what they come to is returned, marked
    `accepted=False` unless it clears after all. The plain call's own image is dropped like any
    other, so the result may be below it. Where padding costs, lanes wider than 1 save less, since
    survivors differ in number.

    Args:
        method: What a round runs.
        threshold: A reward, a `Threshold` (also one with levels per prompt), the path of a saved
            one, or an object with `accept(reward) -> bool`. Left out with a `calibration`, which
            has a threshold of its own.
        max_rounds: Rounds at most.
        on_reject: What to do with a prompt that never clears: return the `"best"` found, marked
            `accepted=False`, or `"raise"`.
        calibration: Which previews are hopeless, and the threshold; or the path of a saved one. For
            rounds of `BestOfN` only.

    Raises:
        ValueError: Arguments of the wrong kind, or a file that cannot be read. When called: a
            `Threshold` of another reward or version, or without a level for a prompt; a run that
            the calibration does not cover (reward, version, number of steps, noise levels); a
            reward that only ranks candidates.
    """

    method: Method
    threshold: Any = None
    max_rounds: int = 4
    on_reject: Literal["best", "raise"] = "best"
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        whole("max_rounds", self.max_rounds, _EXAMPLE)
        check_method("method", self.method, _EXAMPLE)
        one_of("on_reject", self.on_reject, ("best", "raise"))
        if self.calibration is None:
            self._read_threshold()
        else:
            self._read_calibration()

    def _read_threshold(self) -> None:
        if isinstance(self.threshold, str | Path):
            object.__setattr__(self, "threshold", Threshold.load(self.threshold))
        number = isinstance(self.threshold, int | float) and self.threshold == self.threshold
        if not number and not callable(getattr(self.threshold, "accept", None)):
            raise ValueError(
                f"threshold={self.threshold!r}: must be a number, a Threshold, the path of one, or "
                f"have accept(reward); write {_EXAMPLE}"
            )

    def _read_calibration(self) -> None:
        if self.threshold is not None:
            raise ValueError(
                f"threshold={self.threshold!r} with a calibration, which has its own: leave it "
                f"out, as in {_CALIBRATED}"
            )
        if isinstance(self.calibration, str | Path):
            object.__setattr__(self, "calibration", Calibration.load(self.calibration))
        if not isinstance(self.calibration, Calibration):
            raise ValueError(
                f"calibration={self.calibration!r}: must be a Calibration or the path of one; "
                f"write {_CALIBRATED}"
            )
        if type(self.method) is not BestOfN or self.method.strides is not None:
            raise ValueError(
                f"calibration with method={self.method!r}: the promise is for particles as they "
                f"are drawn, in every step, so for BestOfN alone; write {_CALIBRATED}"
            )

    @property
    def level(self) -> Any:
        """The threshold, or the calibration's."""
        return self.threshold if self.calibration is None else self.calibration.threshold

    @property
    def populations(self) -> tuple[int, ...]:
        """Those of the method; down to one where particles are dropped on the way."""
        return self.method.populations if self.calibration is None else (self.method.n, 1)

    @property
    def needs_loop(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a round does, or particles are dropped on the way."""
        return self.calibration is not None or self.method.needs_loop

    @property
    def draws(self) -> int:
        """Particles per returned image that all rounds together draw, at most."""
        return self.max_rounds * self.method.draws

    def cost(self, steps: int) -> int:
        """Denoiser rows per returned image, if every round is needed and nothing is dropped."""
        return self.max_rounds * self.method.cost(steps)

    def work(self, steps: int) -> Work:
        """That of all rounds; with a calibration, previews at its steps too."""
        looks = 0 if self.calibration is None else len(self.calibration.steps) * self.method.n
        round_ = self.method.work(steps) + Work(previews=looks, scores=looks + 1, decodes=1)
        return round_ * self.max_rounds

    def rows_at(self, steps: int, indices: Sequence[int]) -> int:
        """Denoiser rows per returned image at some of the steps, in all rounds."""
        return self.max_rounds * self.method.rows_at(steps, indices)

    def kl(self, ctx: Context, prompt: int) -> float | None:
        """That of choosing among the draws of all rounds; else the method's, after one round."""
        once = len(ctx.trace.of("round", prompt)) == 1
        chooses = isinstance(self.method, BestOfN | Prune)
        return self.method.kl(ctx, prompt) if once or chooses else None

    def __call__(self, ctx: Context, start: Population) -> Search:
        """Rounds of `method`; every round draws particles that no round before it had."""
        self._check(ctx)
        first, stride = start.ids[0][1], self.method.draws * ctx.images
        size = self.populations[0] * ctx.images
        ended, population, waiting = start.take([]), start, start.prompts
        best = ended
        for number in range(self.max_rounds):
            last = number + 1 == self.max_rounds
            lacking = {p: _lacking(ctx, ended, p) if last else 0 for p in waiting}
            done = yield from self._round(ctx, population, lacking)
            ended = Population.join([ended, done])
            best = self._chosen(ctx, ended)
            waiting = [p for p in waiting if not _verdict(ctx, best, p, self.level)]
            if not waiting or last:
                break
            begin = first + (number + 1) * stride
            population = ctx.draw(range(begin, begin + size), waiting)
        if self.on_reject == "raise" and waiting:
            raise NotAcceptedError(self._complaint(ctx, best, waiting[0]))
        return best

    def _round(self, ctx: Context, start: Population, lacking: dict[int, int]) -> Search:
        """The winners of one round, or with a calibration the particles that it did not drop."""
        if self.calibration is None:
            return (yield from self.method(ctx, start))
        return (yield from sample_hopeful(ctx, start, self.calibration, lacking))

    def _chosen(self, ctx: Context, ended: Population) -> Population:
        """`ctx.images` per prompt: the best winners of the rounds, or the pick of all finished ones
        where rounds choose none; as they are where no prompt has more."""
        values = ctx.evaluate(ended)
        counts = [sum(name[0] == prompt for name in ended.ids) for prompt in ended.prompts]
        if max(counts, default=0) <= ctx.images:
            return ended
        if self.calibration is None:
            return ended.take(ctx.top(ended, values, ctx.images))
        return ended.take(ctx.judging.pick(ended.ids, values.tolist(), ctx.images))

    def _check(self, ctx: Context) -> None:
        """Refuse at the first step, not after a round."""
        if self.calibration is not None:
            check_absolute(ctx.reward, "calibration")
            self.calibration.check(ctx.reward, ctx.steps, ctx.prompts)
            return
        check_absolute(ctx.reward, f"threshold={self.threshold!r}")
        if isinstance(self.threshold, Threshold):
            self.threshold.check(ctx.reward)
            for text in ctx.prompts:
                self.threshold.at(text)

    def _complaint(self, ctx: Context, best: Population, prompt: int) -> str:
        reward = max(ctx.finals[name] for name in best.ids if name[0] == prompt)
        return (
            f"prompt {prompt} ({ctx.prompts[prompt]!r}): the best reward of {self.max_rounds} "
            f"rounds is {reward:.4g}, which threshold={self.level!r} rejects; raise "
            "max_rounds, lower the threshold, or use on_reject='best'"
        )


def _lacking(ctx: Context, ended: Population, prompt: int) -> int:
    """How many images of a prompt are not finished yet."""
    return max(ctx.images - sum(name[0] == prompt for name in ended.ids), 0)


def _verdict(ctx: Context, best: Population, prompt: int, threshold: Any) -> bool:
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
    flagged = ctx.judging.flagged
    flags = [flag and name not in flagged for flag, name in zip(flags, names, strict=True)]
    ctx.accept(prompt, flags)
    accepted = all(flags) and len(flags) >= ctx.images
    highest = max(rewards, default=None)
    ctx.log("round", prompt=prompt, best=highest, threshold=level, accepted=accepted)
    return accepted
