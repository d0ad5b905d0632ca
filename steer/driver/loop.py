"""One run of a pipeline's loop under a search: what is evaluated next, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from threading import get_ident
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steer.core.errors import AGAIN, SteerError, UnsupportedPipelineError, in_a_call
from steer.core.ledger import Ledger
from steer.core.types import Query
from steer.driver.counting import Number, running
from steer.driver.edits import Edits, Noises
from steer.driver.grid import Schedule
from steer.driver.opened import Opened, same
from steer.driver.solver_state import clone


_WATCHED = 3  # queries whose latents are compared with what the pipeline evaluates


Driven: TypeAlias = Generator[Query, Tensor, Tensor]
"""A running search: yields queries, is sent model outputs, returns the latents to decode."""


@dataclass(frozen=True, eq=False)
class Opening:
    """What is known when the pipeline calls `step` for the first time.

    Attributes:
        latents: The pipeline's own first latents, `(lane rows, *latent)`, scaled and packed.
        schedule: The steps that the pipeline runs.
        scheduler: A copy of the user's scheduler after `set_timesteps`, never stepped.
        step_kwargs: What the pipeline passes to `step` besides the three tensors. Always those of
            the latest denoiser call.
        finish: What the pipeline makes of clean latents at its end, of any rows.
    """

    latents: Tensor
    schedule: Schedule
    scheduler: Any
    step_kwargs: dict[str, Any]
    finish: Callable[[Tensor], Tensor] = lambda latents: latents


class Loop:
    """The state of one run of a pipeline's loop under one search.

    Attributes:
        ledger: Counts every denoiser call.
        query: What the denoiser is asked now; None before the search begins and after it.
        jump: Where a flow map is asked to go by a query, if not where its pipeline asks it to.
        evaluations: How many denoisers evaluate a row at a step `(index, count)`: more than one
            for a blend of tuned and untuned models.
        calls: Denoiser calls that some slots take: one for every device that has any of them.
        started, finished: Whether the search has begun, and returned.
        interrupted: The pipeline stopped calling `step` (`pipe._interrupt`).
        reusable: Whether `set_timesteps` begins another run, and then `around` is entered until
            the search returns.
        noises: The noise of particles, where the pipeline noises a given image.
        edited: Whether the pipeline puts a given image into the latents after `step`.
        kept: Whether it does so with a clean one (see `keeps_image`).
        callbacks: Whether a callback of the user's may change latents between steps.
        spares: Whether padding is left out of the denoiser's batch.
        opening: Slots of the first denoiser call that the search needs; empty for all.
        failed: The search itself raised an error (a reward, say).
        copied: The pipeline made a second scheduler of this one.
        owner: The pipeline's class, for errors.
    """

    def __init__(self, scheduler: Any, search: Callable[[Opening], Driven], ledger: Ledger) -> None:
        self.scheduler = scheduler
        self.search_of, self.ledger = search, ledger
        self.owner, self._thread = "the pipeline", get_ident()
        self.reusable = self.spares = False
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._around = ExitStack()
        self.callbacks = True
        self.edited = self.kept = False
        self.noises: Noises = lambda names, noise: noise
        self.evaluations: Callable[[int, int], int] = lambda index, count: 1
        self.jump: Callable[[Query], float | None] = lambda query: None
        self.calls: Callable[[tuple[int, ...]], int] = lambda slots: 1
        self.opening: tuple[int, ...] = ()
        self._clear()

    def _clear(self) -> None:
        self.begin: int | None = None
        self.finished = self.interrupted = self.failed = self.copied = False
        self.edits: Edits | None = None
        self._item: Any = None
        self._arguments: dict[str, Any] = {}
        self._search: Driven | None = None
        self.query: Query | None = None
        self._grid: Tensor | None = None
        self._offset = self._moves = 0
        self._opened: Opened | None = None
        self._asked = self._thinking = self._outer = self._inner = False

    @property
    def started(self) -> bool:
        return self._search is not None

    def check_caller(self) -> None:
        """Raise SteerError where a call in another thread, or of a reward's own, meets this one."""
        if self._thinking or (self._thread != get_ident() and not self.reusable):
            raise SteerError(in_a_call(self.owner))

    def iterate(self, grid: Tensor) -> Iterator[Tensor]:
        """What the pipeline iterates over: the timestep of each query, one at a time."""
        if not len(grid):
            return
        if self.started:
            raise _undriven("it runs more than one loop in a call")
        items = grid.unbind()
        self._grid = grid
        token = running.set(self)
        try:
            yield self._ask(items[0])
            if self._search is None:  # nobody stepped: the pipeline is only reading the numbers
                self._item = None
                yield from items[1:]
                return
            while self.query is not None:
                yield self._ask(self.query.step.t, self.query.grad)
                if self._asked:
                    self.interrupted = True
                    return
        finally:
            self._item = None
            with suppress(ValueError):  # closed in another context
                running.reset(token)

    def _ask(self, t: Tensor, grad: bool = False) -> Tensor:
        self._asked = True
        self._item = t
        if not (grad and self.edited):  # then it is on already
            self._outer = torch.is_grad_enabled()
        if grad:
            torch.set_grad_enabled(True)
        return t

    def number(self, item: Any, start: int = 0) -> int | None:
        """The loop's number while `item` is its newest timestep: the index of its step."""
        if item is not self._item:
            return None
        index = self.asked()[0] + start
        if self.edits is None:
            return index
        return Number.of(index, lambda: self._number_now() + start)

    def _number_now(self) -> int:
        """The number of the step that is evaluated, or that led to what `step` returned."""
        if self._asked:
            return self.asked()[0]
        assert self._grid is not None
        return (len(self._grid) if self.query is None else self.query.step.index) - 1

    def answer(self, output: Tensor, sample: Tensor, step_kwargs: dict[str, Any]) -> Tensor:
        """Send the model output at `sample` to the search; returns its next latents, or winners."""
        self.check_caller()
        if not self._asked:
            raise _undriven(
                "it calls scheduler.step other than once per item of scheduler.timesteps"
            )
        self._asked = False
        torch.set_grad_enabled(self._outer)
        wanted = self.wanted()
        self.ledger.denoiser_calls += self.calls(wanted)
        rows = len(wanted) or len(sample)
        self.ledger.denoiser_rows += rows * self.evaluations(*self.asked())
        self._arguments.clear()
        self._arguments |= step_kwargs
        if self._search is None:
            self._open(sample)
            first = self._resume(None)
            if isinstance(first, Tensor):
                return first
            opened = Opened.of(output, first, sample, self.opening, self.jump(first) is not None)
            if opened.missing:
                self._opened = opened
                return self._handed(first)
        elif self.query is not None:
            self._absorb(self.query, sample)
            if self._opened is not None:
                output, self._opened = self._opened.completed(output), None
        return self._handed(self._resume(output))

    def _handed(self, following: Query | Tensor) -> Tensor:
        """The latents that `step` returns: those of the next query, or the winners'."""
        if isinstance(following, Tensor):
            return following
        if following.grad and self.edited:
            torch.set_grad_enabled(True)  # what the pipeline does to the latents has a gradient
        return following.latents

    def _open(self, sample: Tensor) -> None:
        if self.copied:
            raise _undriven(
                "it steps a second stream (sound, say) by a copy of its scheduler, which a search "
                "cannot follow"
            )
        if self._arguments.get("per_token_timesteps") is not None:
            raise _undriven("every token has a noise level of its own (per_token_timesteps)")
        self._inner = self._outer
        schedule = Schedule.from_scheduler(self.scheduler, self._grid)
        self._offset = schedule.offset
        opening = Opening(sample, schedule, clone(self.scheduler), self._arguments, self._finish)
        self._search = self.search_of(opening)

    def _resume(self, output: Tensor | None) -> Query | Tensor:
        """The search's next query, or its winners. The search keeps a grad mode of its own."""
        assert self._search is not None
        outer, self._thinking = torch.is_grad_enabled(), True
        torch.set_grad_enabled(self._inner)
        try:
            self.query = next(self._search) if output is None else self._search.send(output)
            return self.query
        except StopIteration as stop:
            self.query, self.finished = None, True
            self._around.close()
            return stop.value
        except BaseException:
            self.failed = True
            raise
        finally:
            self._inner, self._thinking = torch.is_grad_enabled(), False
            torch.set_grad_enabled(outer)

    def scale(self, sample: Tensor, timestep: Any) -> Tensor:
        """`scale_model_input` of the scheduler at the step of the query."""
        scaler = clone(self.scheduler)
        if self.query is None:
            if hasattr(scaler, "_begin_index"):
                scaler._begin_index = self.begin
            return scaler.scale_model_input(sample, timestep)
        index = self.query.step.index + self._offset
        if hasattr(scaler, "_step_index"):
            scaler._step_index = index
        if hasattr(scaler, "state_in_first_order") and hasattr(scaler, "sample"):
            scaler.sample = sample if index % 2 else None  # KDPM2 scales its midpoints apart
        return scaler.scale_model_input(sample, timestep)

    def asked(self) -> tuple[int, int]:
        """The index of the step that the denoiser evaluates now, and the number of steps."""
        if self.query is None:
            return 0, 1 if self._grid is None else len(self._grid)
        return self.query.step.index, self.query.step.count

    def wanted(self) -> tuple[int, ...]:
        """Slots of the batch that the denoiser is asked for now; empty for all of them."""
        if not self.spares:
            return ()
        if self.query is None:
            return self.opening
        return self.query.slots if self._opened is None else self._opened.missing

    def noised(self, name: str, args: Any, kwargs: Any) -> Tensor:
        """`scheduler.add_noise` or `scale_noise`, where the pipeline calls it."""
        if self._asked or self._thinking or not self.started:
            return getattr(self.scheduler, name)(*args, **kwargs)
        if self.edits is None:
            self.edits = Edits(self.noises)
        self._thinking = True  # drawing a particle's noise may come back here
        try:
            return self.edits.noised(self.scheduler, name, args, kwargs, self.query, self._offset)
        finally:
            self._thinking = False

    def _finish(self, latents: Tensor) -> Tensor:
        return latents if self.edits is None else self.edits.finish(latents)

    def _absorb(self, query: Query, sample: Tensor) -> None:
        """Copy latents that a callback or the pipeline changed after `step` into the query.

        Raises:
            UnsupportedPipelineError: They were changed, and neither a callback nor an edit that is
                understood did it.
        """
        self._moves += 1
        if sample is query.latents:
            return
        if self.kept:
            if query.step.index:
                self.edits = self.edits or Edits(self.noises)
                self.edits.keep(query.latents.detach(), sample.detach())
        elif self.edits is not None:
            self.edits.learn(sample.detach())
        elif not self.callbacks and self._moves <= _WATCHED and not same(sample, query.latents):
            raise _undriven("its latents change after scheduler.step: a search cannot follow that")
        if sample.shape != query.latents.shape:
            return
        with torch.no_grad():
            if not query.grad:
                query.latents.copy_(sample)
            elif self.edited:
                query.latents.data.copy_(sample)

    def rewind(self) -> None:
        """Prepare for the next call of the pipeline, if the scheduler stays in it (`drop_in`)."""
        if self.reusable:
            self.close()
            self._clear()
            self._around.enter_context(self.around())

    def close(self) -> None:
        """Close a search that has not returned."""
        self._around.close()
        if self._search is not None:
            self._search.close()


def _undriven(why: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(f"this pipeline's loop cannot be driven: {why}; {AGAIN}.")
