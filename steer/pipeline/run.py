"""One search inside one run of a pipeline's loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from steer.core.costs import ROWS, Unit
from steer.core.ledger import Ledger
from steer.core.meter import Meter
from steer.core.trace import Trace
from steer.core.types import Name, Population, Query, Reward
from steer.core.warn import warn
from steer.driver.caches import check_caches
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.nan import Decoded
from steer.driver.decoding.previews import PreviewDecoder
from steer.driver.facts import guidance_rows, guidance_scale
from steer.driver.jumps import jump_of
from steer.driver.loop import Driven, Opening
from steer.driver.model import Model
from steer.driver.narrow import Checked
from steer.driver.noise import Source
from steer.driver.safety import Check
from steer.driver.solver import Solver
from steer.driver.solver_state import renoises
from steer.methods.default import Sampling
from steer.methods.selection.best_of_n import BestOfN
from steer.pipeline.plan import affordable, per_row
from steer.pipeline.planning.plans import Plans
from steer.pipeline.progress import Progress
from steer.pipeline.so_far import SoFar
from steer.pipeline.weighing import Weights, weigh
from steer.search.clean import Clean
from steer.search.context import Context
from steer.search.judging import Judging
from steer.search.method import Method
from steer.search.picks.base import Pick
from steer.search.picks.picking import Picking
from steer.search.picks.ranks import Best
from steer.search.starts import Starts


if TYPE_CHECKING:
    from steer.driver.denoisers.models import Models


@dataclass(eq=False, kw_only=True)
class Run:
    """A method, its reward and its books, waiting for the pipeline's first step.

    Attributes:
        pipe: The pipeline.
        texts: One per prompt, for the reward.
        images: Returned images per prompt.
        lane_width: Particles per returned image in one denoiser call.
        devices: Where lanes are denoised at the same time, the pipeline's own first; empty for its
            own alone.
        checked: Where padding is left out of the denoiser's batch: batches seen to bear it.
        values: Arguments of the pipeline's call by name, its defaults included.
        latent: Whether the call returns latents.
        check: The pipeline's safety checker, where it asks one.
        steps: Denoiser calls that the plain call was thought to make.
        planned: The compute that `method` is chosen for, when steps and costs are known.
        family: The method that `planned` sizes; `None` for the default one.
        unit: What `planned` counts.
        plans: What `planned` stands for, where that was calibrated.
        weights: What calls of the guided pipeline have taught about costs.
        counted: FLOPs of the denoiser so far, where they are counted.
        groups: Rows of the denoiser's batch in each row that was asked twice; 0 where none was.
        own: Latents that the pipeline's own denoiser evaluated, where others did too.
        seed: Of what lies beyond the plain call.
        chosen: The winners' names, once there are any.
        winners: The winners, with the latents of the pipeline's loop.
        progress: What the pipeline's progress bar shows.
        made: Images by particle, where the pipeline was called again for each.
        decoded: Which of the returned rows the pipeline's decoder made NaN.
        select: Which of the finished candidates are returned; `None` for the best.
        previewer: What decodes previews; `None` for the pipeline's own decoder.
        models: Tuned and untuned denoisers that answer in the pipeline's place; `None` for its own.
    """

    pipe: Any
    texts: list[str]
    images: int
    reward: Reward
    judges: list[Reward]
    method: Method
    source: Source
    seed: int
    lane_width: int = 1
    devices: tuple[torch.device, ...] = ()
    checked: Checked | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    latent: bool = False
    check: Check | None = None
    steps: int = 0
    planned: float | None = None
    family: type[Method] | None = None
    unit: Unit = "flops"
    plans: Plans | None = None
    weights: Weights = field(default_factory=Weights)
    counted: Callable[[], float] = lambda: 0.0
    groups: Callable[[], int] = lambda: 0
    own: Callable[[], int] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    trace: Trace = field(default_factory=Trace)
    context: Context | None = None
    chosen: list[Name] = field(default_factory=list)
    winners: Population | None = None
    made: Callable[[Sequence[Name]], Any] | None = None
    select: Pick | None = None
    previewer: PreviewDecoder | None = None
    models: Models | None = None
    decoded: Decoded | None = None
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.progress = Progress(self.ledger, self.trace)

    @property
    def picking(self) -> Picking:
        """The pick of this call, which has seen nothing yet."""
        return Picking(self.select or Best(), self.source.seeds)

    @property
    def rows(self) -> int:
        """Rows of the plain call."""
        return len(self.texts) * self.images

    @property
    def breadth(self) -> int:
        """Particles per returned image in the pipeline's batch: a lane for every device."""
        return self.lane_width * max(len(self.devices), 1)

    @property
    def spares(self) -> bool:
        """Whether padding is left out of the denoiser's batch, and so costs nothing."""
        return self.checked is not None

    @property
    def opening(self) -> tuple[int, ...]:
        """Slots of the pipeline's first batch that the method starts with; empty for all."""
        lane, size = self.images * self.breadth, self.images * self.method.populations[0]
        if self.planned is not None:
            size = self.images  # how many there will be is planned at the first step
        if size >= lane:
            return ()
        return tuple(p * lane + k for p in range(len(self.texts)) for k in range(size))

    @property
    def uneven(self) -> bool:
        """Whether some lane is sure to be narrower than the pipeline's batch."""
        return any(size % self.lane_width for size in self.method.populations)

    @property
    def exact(self) -> bool:
        """Whether the pipeline's latents are float32 at least."""
        lane = self.source.lane
        return lane is None or torch.finfo(lane.dtype).bits >= 32

    def evaluations(self, index: int, steps: int) -> int:
        """Denoisers that answer one row at a step."""
        return 1 if self.models is None else self.models.rows(index, steps)

    def jump(self, query: Query) -> float | None:
        """The timestep that a flow map is asked to jump to, if not to where its pipeline asks."""
        ctx = self.context
        return None if ctx is None or not ctx.model.is_flow_map else jump_of(query.step, ctx.steps)

    def search(self, opening: Opening) -> Driven:
        """The method as the pipeline's loop runs it; returns the winners' latents."""
        self.source.check_lane(opening.latents)
        self.steps = steps = len(opening.schedule)
        self.source.lane, self.source.scheduler = opening.latents, opening.scheduler
        self.ledger.cfg_rows = max(self.ledger.cfg_rows, guidance_rows(self.pipe))
        ctx = self.context = self._context(opening)
        self._read_meter(ctx, opening)
        if self.planned is not None:
            self._plan(ctx, self.planned, opening)
        if self.method.cost(steps) > steps or self.values.get("output_type") == "latent":
            ctx.model.check_decodes(opening.latents)
        check_caches(self.pipe, self._keeps_order(steps), self._who())
        size = self.method.populations[0] * self.images
        ctx.solver().check(size * len(self.texts))
        self.progress.planned = self.method.cost(steps) * self.rows * per_row(self.models, steps)
        so_far = SoFar(ctx)
        with so_far.watching() if self.progress.on_step is not None else nullcontext():
            search = self.method(ctx, ctx.draw(range(size)))
            winners = yield from self.progress.follow(search, so_far)
        self.choose(winners)
        return winners.x

    def _read_meter(self, ctx: Context, opening: Opening) -> None:
        """What the pipeline's first denoiser call cost, and what is known of the rest."""
        self.weights.meter(ctx.meter, self.pipe, self.reward, opening.latents, self.previewer)
        if flops := self.counted():
            share = (self.groups() or self.ledger.cfg_rows) / self.ledger.cfg_rows
            rows = self.ledger.denoiser_rows if self.own is None else self.own()
            rows += self.ledger.checked_rows * share
            ctx.meter.known["row"] = flops / rows

    def _plan(self, ctx: Context, compute: float, opening: Opening) -> None:
        """Choose the method again, now that steps and costs are known."""
        fixed = None if self.spares else self.lane_width
        costs = ROWS
        if self.unit == "flops" and compute > 1:
            costs = weigh(ctx, opening.latents)
        guidance = guidance_scale(self.pipe, self.values) if self.ledger.cfg_rows > 1 else 1.0
        if self.plans is not None:
            self.plans.check_steps(self.steps)
            self.plans.check_guidance(guidance)

        def plan(sampling: Sampling) -> Method:
            known = (fixed, costs, sampling, self.plans, self.family)
            return affordable(compute, self.steps, self.models, *known)

        sampling = Sampling(
            drafts=True,
            guidance=guidance,
            renoises=self.models is None and renoises(opening.scheduler),  # else every step
            flow=ctx.steps[0].prediction == "flow",
        )
        if not plan(sampling).suits(ctx):
            sampling = replace(sampling, drafts=False)
        self.weights.sampling, self.weights.lane = sampling, fixed
        self.method = plan(sampling)
        if self.family is None and compute > 1 and self.method == BestOfN(1):
            two = BestOfN(2, sampling.strides(self.steps))
            least = costs.calls(two.work(self.steps), self.steps) * per_row(self.models, self.steps)
            message = (
                f"compute={compute:g}: two candidates cost {least:.2f} plain calls here, decodes "
                "and scores included, so this is the plain image; give more, or "
                "compute_unit='rows' to count the denoiser alone"
            )
            warn(message, stacklevel=8)

    def choose(self, winners: Population) -> None:
        """Note the winners."""
        self.chosen = list(winners.ids)
        self.winners = winners
        for prompt in winners.prompts:
            chosen = [k for p, k in winners.ids if p == prompt]
            self.trace.log("final", prompt=prompt, chosen=chosen)

    def _keeps_order(self, steps: int) -> bool:
        """Whether one lane runs once from the first step to the last, as in a plain call."""
        lane = self.breadth
        once = self.method.populations == (lane,) and self.method.cost(steps) == lane * steps
        return once and self.models is None and not self.method.reorders

    def _who(self) -> str:
        return repr(self.method) if self.models is None else "a call with tuned weights"

    def _context(self, opening: Opening) -> Context:
        asked = Asked(self.values, self.source.prepared)
        return Context(
            steps=opening.schedule,
            images=self.images,
            lane_width=self.lane_width,
            devices=max(len(self.devices), 1),
            model=Model(self.pipe, asked, opening.finish, self.previewer),
            judging=Judging(
                self.reward,
                self.texts,
                self.ledger,
                self.trace,
                keeps_base=bool(self.judges),
                check=self.check,
                picking=self.picking,
                meter=Meter(self.ledger),
            ),
            clean=Clean() if self.latent and opening.schedule[-1].ends_in_noise else None,
            draw_latents=self.source.draw,
            make_solver=lambda plain: self._solver(opening, plain),
            evaluations=lambda step: self.evaluations(step.index, step.count),
            starts=Starts(self.source.seeds),
            spares=self.spares,
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

    def progress_bar(self, iterable: Any = None, total: int | None = None, **options: Any) -> Any:
        """The pipeline's own bar, over all planned denoiser calls; `options` are its own."""
        if total is not None:
            total = -(-self.method.cost(total) // self.breadth)
        return self.progress.bar(self.pipe, iterable=iterable, total=total, **options)
