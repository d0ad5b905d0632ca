"""All that a method may touch: the grid, the denoiser, the decoder, the reward, the books."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steer.core.types import Name, Population, Query, Reward, Step
from steer.driver.grid import Schedule
from steer.driver.model import Model
from steer.driver.solver import Solver
from steer.search import decoding
from steer.search.clean import Clean
from steer.search.judging import Judging
from steer.search.lanes import ask, in_pieces, lanes_of
from steer.search.starts import Starts


@dataclass(eq=False, kw_only=True)
class Context:
    """What a method works with during one call. The pipeline itself stays out of its reach.

    Attributes:
        steps: The grid that the pipeline runs.
        images: Winners to return per prompt.
        lane_width: Particles per returned image in one denoiser call.
        devices: How many denoiser calls are made at the same time, each on a device of its own.
        model: Decodes, and keeps weights out of gradients; what is known of the pipeline.
        judging: The reward, and every score so far.
        starts: Initial latents that the method made, their names and their noise.
        draw_latents: The pipeline's own draw: `(particles, prompts) -> Population`.
        make_solver: A fresh `Solver`, with or without the plain call's rows.
        evaluations: Denoisers that answer one row at a step; more than one for a blend of models.
        spares: Whether padding is left out of the denoiser's batch, and so costs nothing.
        clean: The x0 of final latents, where the loop ends before the noise does.
        accepted: Per prompt, one bool per returned image; missing means accepted.
        viewers: Called with everything that is previewed: population of x0, rewards, step.
    """

    steps: Schedule
    images: int
    lane_width: int
    model: Model
    judging: Judging
    starts: Starts
    draw_latents: Callable[[Sequence[int], Sequence[int]], Population]
    make_solver: Callable[[bool], Solver]
    evaluations: Callable[[Step], int] = lambda step: 1
    spares: bool = False
    devices: int = 1
    clean: Clean | None = None
    accepted: dict[int, list[bool]] = field(default_factory=dict)
    viewers: list[Callable[[Population, Tensor, Step], None]] = field(default_factory=list)
    _limits: list[Callable[[], float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        judging = self.judging
        self.prompts, self.reward, self.finals = judging.prompts, judging.reward, judging.finals
        self.ledger, self.trace, self.meter = judging.ledger, judging.trace, judging.meter

    @property
    def lane(self) -> int:
        """Rows per prompt in one denoiser call."""
        return self.images * self.lane_width

    @property
    def batch(self) -> int:
        """Rows per prompt that are asked at the same time: a lane for every device."""
        return self.lane * self.devices

    @property
    def piece(self) -> int:
        """Rows that are decoded and scored together: decoders take more memory than denoisers."""
        return len(self.prompts) * self.images * min(self.lane_width, 4)

    def draw(self, particles: Sequence[int], prompts: Sequence[int] | None = None) -> Population:
        """Fresh initial latents of `particles` for every prompt (or those named), prompt-major."""
        where = range(len(self.prompts)) if prompts is None else prompts
        for prompt in where:
            self.log("start", prompt=prompt, particle=list(particles))
        return self.draw_latents(particles, where)

    def initial(self, ids: Sequence[Name]) -> Population:
        """The initial latents of particles that were drawn, or that a method made."""
        made = self.starts.latents
        rows = [made[i] if i in made else self.draw_latents([i[1]], [i[0]]).x[0] for i in ids]
        return Population(torch.stack(rows), tuple(ids))

    def solver(self, start: Population | None = None) -> Solver:
        """The user's scheduler in its initial state; leaves the user's generator to plain rows."""
        return self.make_solver(start is None or any(k < self.images for _, k in start.ids))

    def groups(self, population: Population) -> list[Population]:
        """The population in pieces of a lane for every device, prompt-major as the batch is.

        Finished ones are scored by `evaluate_lanes`, so that it is the same on one device.
        """
        return in_pieces(population, self.batch)

    def denoise(
        self, population: Population, step: Step, grad: bool = False
    ) -> Generator[Query, Tensor, Tensor]:
        """Model outputs after CFG, `(rows, *latent)`: `output = yield from ctx.denoise(...)`.

        Args:
            population: Rows of any prompts, with latents at `step`; any step, in any order.
            grad: Record the calls, so that gradients reach `population.x`. What the method
                computes from the output it records itself, under `torch.enable_grad()`.
        """
        self.judging.asked = step
        lanes = lanes_of(population.ids, len(self.prompts), self.batch)
        answer = yield from ask(lanes, population, step, grad)
        if self.clean is not None:
            self.clean.note(population, step, answer)
        if grad:
            rows = sum(len(lane.slots if self.spares else lane.rows) for lane in lanes)
            self.ledger.backward_rows += rows * self.evaluations(step)
        return answer

    def sample(self, population: Population) -> Generator[Query, Tensor, Population]:
        """The plain pipeline's own sampling of `population`, all steps."""
        solver = self.solver(population)
        for step in self.steps:
            output = yield from self.denoise(population, step)
            population = population.at(solver.step(step, population.x, output, population.ids))
        return population

    def decode(self, latents: Tensor, grad: bool = False) -> Tensor:
        """Latents to images `(rows, 3, H, W)` or videos `(rows, F, 3, H, W)`, float32 in [0, 1]."""
        return decoding.decode(self.model, self.ledger, self.meter, latents, grad)

    def preview(self, latents: Tensor, grad: bool = False) -> Tensor:
        """As `decode`, of what is not final: by the call's cheaper decoder, if it has one."""
        return decoding.preview(self.model, self.ledger, self.meter, latents, grad)

    def backward(self, step: Step, rows: int) -> AbstractContextManager[None]:
        """Around a backward pass of `rows` through the denoiser at a step: counts its FLOPs."""
        return self.meter.count("row_backward", rows * self.evaluations(step))

    def show(self, population: Population) -> Tensor:
        """Final latents decoded, or their x0 where they are noisy."""
        return self.decode(population.x if self.clean is None else self.clean.of(population))

    def score(self, images: Tensor, ids: Sequence[Name], reward: Reward | None = None) -> Tensor:
        """The reward of images for their particles' prompts, `(rows,)` float32.

        A reward that compares candidates compares those given here: give a whole population, or
        use `evaluate`. Raises RewardError unless each score is finite.
        """
        return self.judging.score(images, ids, reward)

    def evaluate(self, population: Population, step: Step | None = None) -> Tensor:
        """Decode and score clean latents, a piece at a time; `(rows,)` float32.

        Relative rewards compare previews within `population`, final latents with all finished ones.

        Args:
            population: Clean latents: x0 previews of a step, or final ones.
            step: Of previews; `None` for final latents, whose rewards `finals` keeps.
        """
        show = self.show if step is None else lambda part: self.preview(part.x)
        values = self.judging.evaluate(population, step, self.piece, show)
        if step is not None:
            for view in self.viewers:
                view(population, values, step)
        return values

    def evaluate_lanes(self, finished: Population) -> None:
        """Decode and score final latents lane by lane, in the batches that one device would make.

        `finals` keeps the rewards.
        """
        for part in in_pieces(finished, self.lane):
            self.evaluate(part)

    def top(self, population: Population, values: Tensor, count: int) -> list[int]:
        """Rows of the `count` best of every prompt, best first; flagged last, ties in order."""
        return self.judging.top(population.ids, values.tolist(), count)

    def winners(self, population: Population) -> Population:
        """The `images` that the call's pick chooses of every prompt; all, unjudged, if fewer."""
        if len(population) <= self.images * len(population.prompts):
            return population
        values = self.evaluate(population).tolist()
        return population.take(self.judging.pick(population.ids, values, self.images))

    def left(self) -> float:
        """Denoiser-row equivalents that may still be spent, all prompts together."""
        return min((limit() for limit in self._limits), default=math.inf)

    @contextmanager
    def limit(self, left: Callable[[], float]) -> Iterator[None]:
        """A further limit on `left()` for a while."""
        self._limits.append(left)
        try:
            yield
        finally:
            self._limits.remove(left)

    def accept(self, prompt: int, flags: Sequence[bool]) -> None:
        """Whether each winner of a prompt is good enough."""
        self.accepted[prompt] = list(flags)

    def log(self, event: str, **values: Any) -> None:
        """Add one row to the trace."""
        self.trace.log(event, **values)

    def tell(self, event: str, names: Sequence[Name], step: Step | None, **values: Any) -> None:
        """Add one row per prompt, lists dealt out by particle: `Trace.tell`."""
        self.trace.tell(event, names, step=None if step is None else step.index, **values)

    def tell_descent(
        self, event: str, names: Sequence[Name], step: Step | None, parents: Sequence[Name]
    ) -> None:
        """Say who descends from whom, `"select"` or `"branch"`."""
        self.tell(event, names, step, ancestors=[parent for _, parent in parents])
