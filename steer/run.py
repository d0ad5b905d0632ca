"""One search inside one run of a pipeline's loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steer.context import Context
from steer.drive import Driven, Opening
from steer.errors import UnsupportedPipelineError
from steer.ledger import Ledger
from steer.methods.default import for_compute
from steer.noise import Source
from steer.proposals import Solver
from steer.starts import Starts
from steer.trace import Trace
from steer.types import Method, Name, Reward


@dataclass(eq=False)
class Run:
    """A method, its reward and its books, waiting for the pipeline's first step.

    Attributes:
        pipe: The pipeline.
        texts: One per prompt, for the reward.
        images: Returned images per prompt.
        width: Particles per returned image in one denoiser call.
        size: Image height and width, where the call names them.
        steps: Denoiser calls that the plain call was thought to make.
        planned: The compute that `method` was chosen for; chosen again where `steps` is wrong.
        seed: Of what lies beyond the plain call.
        chosen: The winners, once there are any.
    """

    pipe: Any
    texts: list[str]
    images: int
    reward: Reward
    judges: list[Reward]
    method: Method
    source: Source
    seed: int
    width: int = 1
    size: tuple[int | None, int | None] = (None, None)
    steps: int = 0
    planned: float | None = None
    ledger: Ledger = field(default_factory=Ledger)
    trace: Trace = field(default_factory=Trace)
    context: Context | None = None
    chosen: list[Name] = field(default_factory=list)
    _bar: Any = None

    @property
    def rows(self) -> int:
        """Rows of the plain call."""
        return len(self.texts) * self.images

    def search(self, opening: Opening) -> Driven:
        """The method as the pipeline's loop runs it; returns the winners' latents."""
        steps = len(opening.schedule)
        if self.planned is not None and steps != self.steps:
            self.method = for_compute(self.planned, steps, width=self.width)
        self.steps = steps
        self.source.lane, self.source.scheduler = opening.latents, opening.scheduler
        if getattr(self.pipe, "do_classifier_free_guidance", False):
            self.ledger.cfg_rows = 2
        ctx = self.context = self._context(opening)
        self._check_caches(steps)
        size = self.method.populations[0] * self.images
        ctx.solver().check(size * len(self.texts))
        winners = yield from self.method(ctx, ctx.draw(range(size)))
        self.chosen = list(winners.ids)
        for prompt in winners.prompts:
            ctx.log("final", prompt=prompt, chosen=[k for p, k in winners.ids if p == prompt])
        return winners.x

    def _context(self, opening: Opening) -> Context:
        return Context(
            pipe=self.pipe,
            steps=opening.schedule,
            prompts=self.texts,
            images=self.images,
            width=self.width,
            seed=self.seed,
            reward=self.reward,
            judges=self.judges,
            source=self.source.draw,
            make_solver=lambda plain: self._solver(opening, plain),
            ledger=self.ledger,
            trace=self.trace,
            on_best=self._show,
            size=self.size,
            starts=Starts(self.source.seeds),
        )

    def _check_caches(self, steps: int) -> None:
        """Feature caches reuse the last call's activations, row by row: one pass, one lane."""
        one_pass = self.method.populations == (self.width,)
        one_pass &= self.method.cost(steps) == self.width * steps
        if one_pass and not getattr(self.method, "reorders", False):
            return
        for name in ("transformer", "unet"):
            if getattr(getattr(self.pipe, name, None), "is_cache_enabled", False):
                raise UnsupportedPipelineError(
                    f"pipe.{name} has a feature cache, which takes every denoiser call for the "
                    f"next step of the same rows; {self.method!r} asks in another order: call "
                    f"pipe.{name}.disable_cache() first"
                )

    def _solver(self, opening: Opening, plain: bool) -> Solver:
        return Solver(
            opening.scheduler,
            plain_rows=self.rows if plain else 0,
            images=self.images,
            step_kwargs=opening.step_kwargs,
            seed=self.source.seeds,
            offset=opening.schedule.offset,
        )

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """The pipeline's own bar, over all planned denoiser calls."""
        plain = type(self.pipe).progress_bar
        if total is not None:
            total = -(-self.method.cost(total) // self.width)
        self._bar = plain(self.pipe, iterable=iterable, total=total)
        return self._bar

    def _show(self, best: float) -> None:
        if hasattr(self._bar, "set_postfix"):
            self._bar.set_postfix(reward=f"{best:.4g}", refresh=False)
