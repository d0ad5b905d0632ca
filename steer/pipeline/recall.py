"""The pipeline called again for every particle, where no search can sit in its loop.

Cascades, combined pipelines, audio, schedules of their own: methods that only compare finished
images (`Method.needs_loop` is False) need no more than the pipeline's own calls. The first call is
the plain one; every further particle is a call with a generator seeded by (its prompt's seed,
particle), as in a search.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.seeds import row_seed
from steer.core.types import Name, Population, Query
from steer.driver.call import Call
from steer.driver.decoding.asked import Asked
from steer.driver.decoding.nan import decoding_of
from steer.driver.decoding.previews import PreviewDecoder
from steer.driver.facts import guidance_rows
from steer.driver.grid import Schedule
from steer.driver.model import Model
from steer.driver.safety import flags_of
from steer.driver.solver import Solver
from steer.pipeline.images import are_pictures, fields, first_of, images_of, is_per_row
from steer.pipeline.run import Run
from steer.rewards.frames import for_videos
from steer.rewards.inputs import Outputs
from steer.search.context import Context
from steer.search.judging import Judging
from steer.search.starts import Starts


def recall(call: Call, run: Run) -> Any:
    """The winners' output of a method that compares finished images, with `run.context` set.

    Raises:
        UnsupportedPipelineError: The method asks for a denoiser call.
    """
    calls = Calls(call, run)
    run.lane_width, run.devices = 1, ()
    ctx = run.context = Recalled(
        calls=calls,
        steps=Schedule(()),
        images=run.images,
        lane_width=1,
        model=Finished(run.pipe, Asked(run.values, run.source.prepared), calls=calls),
        judging=Judging(
            run.reward,
            run.texts,
            run.ledger,
            run.trace,
            keeps_base=bool(run.judges),
            picking=run.picking,
        ),
        draw_latents=_tickets,
        make_solver=_no_solver,
        starts=Starts(run.source.seeds),
    )
    run.steps = call.steps
    search = run.method(ctx, ctx.draw(range(run.method.populations[0] * run.images)))
    run.progress.planned = run.method.cost(call.steps) * run.rows
    try:
        next(search)
    except StopIteration as stop:
        winners: Population = stop.value
    except _Stopped:
        winners = ctx.winners(calls.population())
        run.progress.stopped = True
        run.trace.log("stop", spent=run.ledger.denoiser_rows, unfinished=[])
    else:
        raise UnsupportedPipelineError(f"{run.method!r} asks for a denoiser call; use BestOfN")
    run.choose(winners)
    run.made = calls.images
    return calls.output_of(winners.ids)


_NO_LISTS = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What pipelines raise that take no list of generators, as Amused's."""


class _Stopped(Exception):
    """The caller asked to stop, and every prompt has an image."""


@dataclass(eq=False)
class Calls:
    """The pipeline's calls so far, and what each of them made.

    Attributes:
        outputs: By name the output of its call, and its row there.
        rows: Images, videos or other outputs by name.
        pictures: Whether they are images or videos.
    """

    call: Call
    run: Run
    outputs: dict[Name, tuple[Any, int]] = field(default_factory=dict)
    rows: dict[Name, Any] = field(default_factory=dict)
    pictures: bool = True

    def images(self, names: Sequence[Name]) -> Any:
        """The images of these particles, or what else the pipeline makes."""
        rows = [self.rows[name] for name in names]
        return torch.stack(rows) if self.pictures else Outputs(rows)

    def make(self, particle: int, wanted: Sequence[int]) -> None:
        """Call the pipeline for a particle of the prompts that want it, unless that was done.

        One call for all prompts, or one for each where some want it no more.
        """
        images, prompts = self.run.images, len(self.run.texts)
        if all((p, particle) in self.rows for p in wanted):
            return
        if particle < images:
            self._plain([(p, k) for p in range(prompts) for k in range(images)])
            return
        names = [(p, particle) for p in range(prompts)]
        seeds = [row_seed(seed, particle) for seed in self.run.source.seeds]
        if len(wanted) < prompts:
            for p in wanted:
                self._keep([(p, particle)], partial(self.call.alone, p, seeds[p]))
            return
        try:
            self._keep(names, lambda: self.call.again(seeds))
        except _NO_LISTS:
            if prompts == 1:
                raise
            for name, seed in zip(names, seeds, strict=True):
                self._keep([name], partial(self.call.alone, name[0], seed))

    def _plain(self, names: list[Name]) -> None:
        """The call as asked; a call per prompt where the pipeline takes no list of generators."""
        own, seeds = self.call.generator, self.run.source.seeds
        whole = self.run.images > 1 or self.call.values.get("latents") is not None
        if whole or not isinstance(own, list) or len(own) != len(names):
            self._keep(names, lambda: self.call.run(1))
            return
        states = [generator.get_state() for generator in own]
        try:
            self._keep(names, lambda: self.call.run(1))
        except _NO_LISTS:
            for name, seed, generator, state in zip(names, seeds, own, states, strict=True):
                generator.set_state(state)
                self._keep([name], partial(self.call.alone, name[0], seed, generator))

    def _keep(self, names: list[Name], run: Callable[[], Any]) -> None:
        """Run a call, and note what it made for these particles."""
        with decoding_of(self.run.pipe) as decoded:
            output = run()
        ledger = self.run.ledger
        ledger.denoiser_calls += self.call.steps
        ledger.denoiser_rows += self.call.steps * len(names)
        ledger.cfg_rows = max(ledger.cfg_rows, guidance_rows(self.run.pipe))
        made = self._read(output, len(names))
        assert self.run.context is not None
        self.run.context.judging.flag(names, flags_of(output, len(names)))
        rows = dict(zip(names, made, strict=True))
        for name, nan in zip(names, decoded.of(len(names)), strict=True):
            if nan and isinstance(rows[name], Tensor):
                rows[name] = torch.full_like(rows[name], torch.nan)  # black, once it is 8 bits
        self.rows |= rows
        self.outputs |= {name: (output, row) for row, name in enumerate(names)}
        self.run.progress.show()
        if self.run.progress.stopping:
            raise _Stopped

    def population(self) -> Population:
        """Everything that was made, as tickets."""
        names = tuple(sorted(self.rows))
        return Population(torch.tensor(names, dtype=torch.long), names)

    def _read(self, output: Any, rows: int) -> Any:
        """What a reward sees of a call's output, row by row."""
        first = first_of(output)
        device = self.call.device
        model = Model(self.run.pipe, Asked(self.run.values))
        if self.call.latent_output and isinstance(first, Tensor):
            return self._decoded(model, first)
        images = images_of(first, device)
        if images is not None and isinstance(first, Tensor):
            images = model.returned(images)
        if images is not None and not are_pictures(images):
            images = None
        self.pictures = images is not None
        if images is None:
            items = first if isinstance(first, list | Tensor | np.ndarray) else [first]
            return Outputs(items) if len(items) == rows else Outputs([first])
        if rows == 1 and len(images) > 1:  # the frames of one video
            images = images[None]
        if len(images) != rows:
            raise UnsupportedPipelineError(
                f"{type(self.run.pipe).__name__} made {len(images)} images where the call asks for "
                f"{rows}, so that steer cannot tell whose they are; ask for one at a time"
            )
        if images.ndim == 5:
            self._score_videos()
        return images

    def _score_videos(self) -> None:
        """Score what a class without a video processor makes all the same, frame by frame."""
        run = self.run
        assert run.context is not None
        run.reward = run.context.judging.reward = for_videos(run.reward)
        run.judges = [for_videos(judge) for judge in run.judges]

    def _decoded(self, model: Model, latents: Tensor) -> Tensor:
        try:
            return model.decode(latents)
        except RuntimeError as error:
            raise UnsupportedPipelineError(
                f"{model.name} returns latents {tuple(latents.shape)} that its VAE does not decode "
                f"as they are ({error}); leave output_type='latent' out"
            ) from error

    def output_of(self, names: Sequence[Name]) -> Any:
        """The pipeline's output with the rows of these particles."""
        images, prompts = self.run.images, len(self.run.texts)
        plain = [(p, k) for p in range(prompts) for k in range(images)]
        base, _ = self.outputs[names[0]]
        together = all(self.outputs[name][0] is base for name in names)
        if (together and list(names) == plain) or len(names) == 1:
            return base
        chosen = {}
        first = self.outputs.get((0, 0), (base, 0))[0]
        rows = sum(output is first for output, _ in self.outputs.values())
        for key, value in fields(first).items():
            if is_per_row(value, rows):
                chosen[key] = _together([self._pick(key, name) for name in names], value)
            else:
                chosen[key] = value
        if isinstance(base, tuple):
            return tuple(chosen.values())
        if not isinstance(base, Mapping):  # a user's own pipeline, which returns images alone
            return chosen[0]
        output: Any = copy.copy(base)  # fields that are None are no items of it
        for key, value in chosen.items():
            output[key] = value
        return output

    def _pick(self, key: Any, name: Name) -> Any:
        output, row = self.outputs[name]
        return fields(output)[key][row]


def _together(rows: Sequence[Any], like: Any) -> Any:
    """Rows as one field of the pipeline's output."""
    if isinstance(like, Tensor):
        return torch.stack(list(rows))
    return np.stack(rows) if isinstance(like, np.ndarray) else list(rows)


@dataclass(frozen=True, eq=False)
class Finished(Model):
    """A model whose latents are tickets, `(rows, 2)`: prompt and particle of a finished call."""

    calls: Calls | None = None

    def decode(self, latents: Tensor, grad: bool = False, by: PreviewDecoder | None = None) -> Any:
        """The images of these tickets, or what else the pipeline makes."""
        assert self.calls is not None
        if latents.is_floating_point():
            return super().decode(latents, grad, by)
        return self.calls.images([(prompt, particle) for prompt, particle in latents.tolist()])


@dataclass(eq=False, kw_only=True)
class Recalled(Context):
    """A context whose particles are calls of the pipeline."""

    calls: Calls

    def sample(self, population: Population) -> Generator[Query, Tensor, Population]:
        """A call for every particle; no denoiser call is asked for."""
        for particle in dict.fromkeys(k for _, k in population.ids):
            self.calls.make(particle, [p for p, k in population.ids if k == particle])
        return population
        yield  # a generator, as its base class's is


def _tickets(particles: Sequence[int], prompts: Sequence[int]) -> Population:
    names = tuple((p, k) for p in prompts for k in particles)
    return Population(torch.tensor(names, dtype=torch.long).view(-1, 2), names)


def _no_solver(plain: bool) -> Solver:
    raise UnsupportedPipelineError("a method that steps latents needs the pipeline's loop")
