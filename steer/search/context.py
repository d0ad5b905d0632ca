"""All that a method may touch: the grid, the denoiser, the decoder, the reward, the books."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.core.errors import NotFiniteError, RewardError
from steer.core.ledger import Ledger
from steer.core.trace import Trace
from steer.core.types import Name, Population, Query, Reward, Step
from steer.driver.decode import decode
from steer.driver.grid import Schedule
from steer.driver.solver import Solver
from steer.rewards.frames import images_scored
from steer.rewards.parts import Parts, combined, is_relative, parts_of
from steer.search.lanes import Lane, lanes_of
from steer.search.starts import Starts


_PREVIEW = 96  # longest side of the previews that a trace keeps


@dataclass(eq=False)
class Context:
    """What a method works with during one call.

    Attributes:
        pipe: The pipeline; methods leave it alone.
        steps: The grid that the pipeline runs.
        prompts: One text per prompt, for the reward.
        images: Winners to return per prompt.
        width: Particles per returned image in one denoiser call.
        seed: What particles and step noise beyond the plain call's are seeded from.
        reward, judges: What is optimised, and what only looks on.
        source: Draws initial latents: `(particles, prompts) -> Population`.
        make_solver: A fresh `Solver`, with or without the plain call's rows.
        ledger, trace: The books.
        size: Image height and width that the call asked for, where it did.
        starts: Initial latents that the method made, their names and their noise.
        watchers: Called with every final population that is scored, and its rewards.
        left: Denoiser-row equivalents that may still be spent, all prompts together.
        evaluations: Denoisers that answer one row at a step; more than one for a blend of models.
        finals: Final reward per particle, where it was scored; of a reward that compares
            candidates, among all finished ones of the prompt so far.
        accepted: Per prompt, one bool per returned image; missing means accepted.
        base: Final image or video of particle 0 per prompt, where it was decoded.
    """

    pipe: Any
    steps: Schedule
    prompts: list[str]
    images: int
    width: int
    seed: int
    reward: Reward
    judges: list[Reward]
    source: Callable[[Sequence[int], Sequence[int]], Population]
    make_solver: Callable[[bool], Solver]
    ledger: Ledger
    trace: Trace
    size: tuple[int | None, int | None] = (None, None)
    starts: Starts = field(default_factory=Starts)
    watchers: list[Callable[[Population, Tensor], None]] = field(default_factory=list)
    left: Callable[[], float] = lambda: math.inf
    evaluations: Callable[[Step], int] = lambda step: 1
    finals: dict[Name, float] = field(default_factory=dict)
    accepted: dict[int, list[bool]] = field(default_factory=dict)
    base: dict[int, Tensor] = field(default_factory=dict)
    _finished: dict[Name, dict[str, float]] = field(default_factory=dict)
    _asked: Step | None = None
    _plan: tuple[tuple[Name, ...], list[Lane]] | None = None

    @property
    def lane(self) -> int:
        """Rows per prompt in one denoiser call."""
        return self.images * self.width

    def draw(self, particles: Sequence[int], prompts: Sequence[int] | None = None) -> Population:
        """Fresh initial latents of `particles` for every prompt (or those named), prompt-major."""
        where = range(len(self.prompts)) if prompts is None else prompts
        population = self.source(particles, where)
        for prompt in where:
            self.log("start", prompt=prompt, particle=list(particles))
        return population

    def initial(self, ids: Sequence[Name]) -> Population:
        """The initial latents of particles that were drawn, or that a method made."""
        made = self.starts.latents
        rows = [made[i] if i in made else self.source([i[1]], [i[0]]).x[0] for i in ids]
        return Population(torch.stack(rows), tuple(ids))

    def solver(self, start: Population | None = None) -> Solver:
        """The user's scheduler as a reverse step, in its initial state.

        Where `start` holds none of the plain call's particles, the solver leaves the user's
        generator alone.
        """
        return self.make_solver(start is None or any(k < self.images for _, k in start.ids))

    def groups(self, population: Population) -> list[Population]:
        """The population in pieces of at most one lane, prompt-major as the pipeline's batch."""
        number: dict[int, int] = {}
        pieces: dict[int, list[int]] = {}
        for row, (prompt, _) in enumerate(population.ids):
            place = number.get(prompt, 0)
            number[prompt] = place + 1
            pieces.setdefault(place // self.lane, []).append(row)
        return [population.take(rows) for rows in pieces.values()]

    def denoise(
        self, population: Population, step: Step, grad: bool = False
    ) -> Generator[Query, Tensor, Tensor]:
        """The denoiser's output for every row, a lane at a time: `out = yield from denoise(...)`.

        Args:
            population: Any rows of any prompts.
            step: Where they are; any step of `steps`.
            grad: Record the calls, so that gradients reach `population.x`; what the method
                computes from the answer it records itself, under `torch.enable_grad()`.

        Returns:
            Post-guidance model output, `(rows, *latent)`.
        """
        x, answers, self._asked = population.x, [], step
        lanes = self._lanes(population.ids)
        for lane in lanes:
            whole = lane.rows == tuple(range(len(population)))
            with torch.set_grad_enabled(grad or torch.is_grad_enabled()):
                names = tuple(population.ids[row] for row in lane.rows)
                query = Query(x if whole else x[list(lane.rows)], step, grad, names)
            version = query.latents._version
            answer = yield query
            if not whole and not grad and query.latents._version != version:
                x[list(lane.slots)] = query.latents[list(lane.slots.values())]  # a callback wrote
            with torch.set_grad_enabled(grad or torch.is_grad_enabled()):
                answers.append(answer if whole else answer[list(lane.slots.values())])
        if grad:
            rows = len(lanes) * len(lanes[0].rows)
            self.ledger.backward_rows += rows * self.evaluations(step)
        if len(answers) == 1:
            return answers[0]
        rows = [row for lane in lanes for row in lane.slots]
        back = sorted(range(len(rows)), key=rows.__getitem__)
        with torch.set_grad_enabled(grad or torch.is_grad_enabled()):
            return torch.cat(answers)[back]

    def _lanes(self, ids: tuple[Name, ...]) -> list[Lane]:
        if self._plan is None or self._plan[0] != ids:
            self._plan = (ids, lanes_of(ids, len(self.prompts), self.lane))
        return self._plan[1]

    def sample(self, population: Population) -> Generator[Query, Tensor, Population]:
        """The plain pipeline's own sampling of `population`, from the first step to the last."""
        solver = self.solver(population)
        for step in self.steps:
            output = yield from self.denoise(population, step)
            population = population.at(solver.step(step, population.x, output, population.ids))
        return population

    def decode(self, latents: Tensor, grad: bool = False) -> Tensor:
        """Latents to images `(rows, 3, H, W)` or videos `(rows, F, 3, H, W)`, float32 in [0, 1]."""
        self.ledger.decodes += len(latents)
        height, width = self.size
        with self.ledger.clock("decode"):
            return decode(self.pipe, latents, grad=grad, height=height, width=width)

    def score(self, images: Tensor, ids: Sequence[Name], reward: Reward | None = None) -> Tensor:
        """The reward of images for their particles' prompts, `(rows,)` float32.

        A reward that compares candidates (`rank`, `standardise`) compares those of each prompt
        that are given here: give a whole population at once, or use `evaluate`.

        Raises:
            RewardError: Not one finite score per image; prompt and particle are named.
        """
        return self.combine(self.parts(images, ids, reward), ids, reward)

    def parts(self, images: Tensor, ids: Sequence[Name], reward: Reward | None = None) -> Parts:
        """Scores of images by part of the reward, `(rows,)` each: what may be asked in pieces.

        Whatever the reward itself raises goes through as it is, with a note (PEP 678) that says
        for which prompts and particles, and after which step, it was called.

        Raises:
            RewardError: Not one score per image, or an image that is not finite.
        """
        if reward is None:
            reward = self.reward
            self.ledger.reward_calls += images_scored(reward, images)
        with self.ledger.clock("reward"), self._noting(reward, ids):
            try:
                return parts_of(reward, images, [self.prompts[prompt] for prompt, _ in ids])
            except NotFiniteError as error:
                raise RewardError(
                    f"{self._particle(ids[error.index])}: its decoded image has NaN pixels; where "
                    "the VAE runs in half precision, decode in float32 (pipe.vae.to(torch.float32))"
                ) from error

    def combine(self, parts: Parts, ids: Sequence[Name], reward: Reward | None = None) -> Tensor:
        """Scores by part as one reward per particle, `(rows,)` float32, prompt by prompt.

        Raises:
            RewardError: A reward that is not finite; prompt and particle are named.
        """
        reward = self.reward if reward is None else reward
        with self._noting(reward, ids):
            scores = combined(reward, parts, [prompt for prompt, _ in ids]).float()
        for row, value in enumerate(scores.detach().tolist()):
            if not math.isfinite(value):
                broken = [k for k, part in parts.items() if not math.isfinite(float(part[row]))]
                part = f" (its part {broken[0]!r})" if len(parts) > 1 and broken else ""
                raise RewardError(
                    f"reward {reward.name!r}{part} returned {value} for {self._particle(ids[row])}"
                    f"{self._when()}: rewards must be finite"
                )
        return scores

    @contextmanager
    def _noting(self, reward: Reward, ids: Sequence[Name]) -> Iterator[None]:
        """Add to an error of the reward's own what was being scored."""
        try:
            yield
        except Exception as error:
            told: dict[int, list[str]] = {}
            for prompt, particle in ids:
                told.setdefault(prompt, []).append(str(particle))
            who = "; ".join(
                f"prompt {prompt} ({self.prompts[prompt]!r}), particle {_few(particles)}"
                for prompt, particles in told.items()
            )
            error.add_note(f"reward {reward.name!r} was scoring {who}{self._when()}")
            raise

    def _when(self) -> str:
        """Where the search was, by its last denoiser call."""
        step = self._asked
        return (
            "" if step is None else f", after the denoiser's step {step.index + 1} of {step.count}"
        )

    def _particle(self, name: Name) -> str:
        prompt, particle = name
        return f"prompt {prompt} ({self.prompts[prompt]!r}), particle {particle}"

    def evaluate(self, population: Population, step: Step | None = None) -> Tensor:
        """Decode and score clean latents, a lane at a time.

        Where the reward compares candidates, previews are compared within `population`, final
        latents with all that were ever finished for their prompt: `finals` follows.

        Args:
            population: Clean latents: x0 previews of a step, or final ones.
            step: The step that previews belong to; `None` for final latents, whose rewards are
                remembered and not asked twice.

        Returns:
            `(rows,)` float32.
        """
        known = self.finals if step is None else {}
        todo = [row for row, name in enumerate(population.ids) if name not in known]
        part, pieces = population.take(todo), []
        chunk = self.lane * len(self.prompts)
        for start in range(0, len(part), chunk):
            ids = part.ids[start : start + chunk]
            with torch.no_grad():
                images = self.decode(part.x[start : start + chunk])
                pieces.append(self.parts(images, ids))
            self._keep(images, ids, step)
        if pieces:
            scores = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
            values = self._note(part.ids, scores, step)
            if step is not None:
                return values
            for watch in self.watchers:
                watch(part, values)
        everyone = [self.finals[name] for name in population.ids]
        return torch.tensor(everyone, device=population.x.device)

    def record(self, images: Tensor, ids: Sequence[Name]) -> None:
        """Score finished images and remember it."""
        parts = self.parts(images, ids)
        self._keep(images, ids, None)
        self._note(ids, parts, None)

    def _note(self, ids: Sequence[Name], parts: Parts, step: Step | None) -> Tensor:
        """Combine scores by part, and log them prompt by prompt."""
        if step is None and is_relative(self.reward):
            scores = self._among_all(ids, parts)
        else:
            scores = self.combine(parts, ids)
        values = scores.tolist()
        if step is None:
            self.finals.update(zip(ids, values, strict=True))
        lists = {name: part.tolist() for name, part in parts.items()} if len(parts) > 1 else {}
        for prompt in dict.fromkeys(prompt for prompt, _ in ids):
            rows = [row for row, name in enumerate(ids) if name[0] == prompt]
            shown = {name: [part[row] for row in rows] for name, part in lists.items()}
            self.log(
                "score",
                step=None if step is None else step.index,
                prompt=prompt,
                particle=[ids[row][1] for row in rows],
                reward=[values[row] for row in rows],
                preview=step is not None,
                **({"parts": shown} if shown else {}),
            )
        return scores

    def _among_all(self, ids: Sequence[Name], parts: Parts) -> Tensor:
        """Rewards of `ids` among all finished particles of their prompts, those updated too."""
        lists = {name: part.tolist() for name, part in parts.items()}
        for row, name in enumerate(ids):
            self._finished[name] = {key: values[row] for key, values in lists.items()}
        prompts = {prompt for prompt, _ in ids}
        names = sorted(name for name in self._finished if name[0] in prompts)
        whole = {key: torch.tensor([self._finished[n][key] for n in names]) for key in lists}
        self.finals.update(zip(names, self.combine(whole, names).tolist(), strict=True))
        for row in self.trace.of("score"):
            if not row["preview"] and row["prompt"] in prompts:
                row["reward"] = [self.finals[row["prompt"], k] for k in row["particle"]]
        device = next(iter(parts.values())).device
        return torch.tensor([self.finals[name] for name in ids], device=device)

    def _keep(self, images: Tensor, ids: Sequence[Name], step: Step | None) -> None:
        """Small previews for the trace, and the base image for the judges."""
        if step is None and self.judges:
            self.base |= {p: images[row] for row, (p, k) in enumerate(ids) if k == 0}
        if not self.trace.keep_images:
            return
        if images.ndim == 5:  # of a video, its middle frame
            images = images[:, images.shape[1] // 2]
        scale = min(1.0, _PREVIEW / max(images.shape[-2:]))
        if scale < 1:
            images = F.interpolate(images, scale_factor=scale, mode="area")
        small = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        at = -1 if step is None else step.index
        self.trace.images |= {(p, k, at): small[row] for row, (p, k) in enumerate(ids)}

    def top(self, population: Population, values: Tensor, count: int) -> list[int]:
        """Rows of the `count` best of every prompt, best first; ties go to the earlier row."""
        best: list[int] = []
        scores = values.tolist()
        for prompt in population.prompts:
            rows = [row for row, name in enumerate(population.ids) if name[0] == prompt]
            best += sorted(rows, key=lambda row: -scores[row])[:count]
        return best

    def winners(self, population: Population) -> Population:
        """The `images` best finished particles of every prompt; all of them, unjudged, if fewer."""
        if len(population) <= self.images * len(population.prompts):
            return population
        return population.take(self.top(population, self.evaluate(population), self.images))

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


def _few(names: Sequence[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
