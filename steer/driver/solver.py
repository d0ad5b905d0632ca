"""The user's scheduler as one reverse step for any number of particles, with state per row."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from steer.core.ddim import ddim
from steer.core.errors import UnsupportedSchedulerError
from steer.core.seeds import row_seed
from steer.core.types import Step
from steer.driver.solver_state import (
    Generators,
    blocks_of,
    clone,
    fork,
    map_rows,
    negative_variance,
    renoises,
    row_tensors,
    step_arguments,
    step_parameters,
    take,
    with_variance,
)


_HISTORY = ("model_outputs", "ets", "derivatives", "prev_derivative", "last_sample", "sample")
_RESTARTS = ("lower_order_nums", "order_list")  # solvers that begin again at order one anywhere


class Solver:
    """The user's scheduler, on copies of it, for populations of any size.

    Rows are particles, named by `ids` (prompt, particle). The *plain* rows are those of the
    unwrapped pipeline call: particles below `images` of every prompt. They draw from the user's
    generator exactly what the plain call draws, bit for bit, also after some of them were pruned.
    Every other row draws from a generator of its own, seeded by a hash of (its prompt's seed,
    particle, step index), so the same step draws the same noise every time.

    Multistep solvers keep history per row, in the order of the rows last stepped. Callers that
    select, permute or duplicate rows call `gather` with the same indices. Such a solver goes from
    one step to the next, or back to the first; other jumps raise an error. To begin in the middle
    make a new solver, of order one at first as in image-to-image; some schedulers raise an error.

    Args:
        scheduler: A diffusers scheduler after `set_timesteps`, not yet stepped; left untouched.
        plain_rows: Rows of the plain pipeline call (prompts x images).
        images: `num_images_per_prompt` of that call.
        step_kwargs: What the pipeline passes to `scheduler.step` (`generator`, `eta`, ...); names
            that the scheduler's `step` does not take are ignored. Read anew at every step.
        seed: Seeds the rows beyond the plain ones: one number, or one per prompt (prompts
            with seeds of their own draw the same noise together as apart).
        offset: `Schedule.offset`.

    Raises:
        UnsupportedSchedulerError: `step` needs more than output, timestep and sample.
        ValueError: `plain_rows` is not a multiple of `images`.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        plain_rows: int,
        images: int = 1,
        step_kwargs: dict[str, Any] | None = None,
        seed: int | Sequence[int] = 0,
        offset: int = 0,
    ) -> None:
        if plain_rows % images:
            raise ValueError(f"plain_rows={plain_rows} is not a multiple of images={images}")
        self.name, self.renoises = type(scheduler).__name__, renoises(scheduler)
        self.plain_rows, self.images, self.seed, self.offset = plain_rows, images, seed, offset
        accepted = step_parameters(scheduler)
        self._arguments: Mapping[str, Any] = {} if step_kwargs is None else step_kwargs
        self._accepted = accepted - {"generator"}
        self._takes_generator = "generator" in accepted
        own = self._arguments.get("generator")
        self._generator: Generators = own if self._takes_generator else None
        self._inner = clone(scheduler)
        if hasattr(scheduler, "is_scale_input_called"):
            self._inner.is_scale_input_called = True
        self._fresh = clone(self._inner)
        self._next = 0
        self._shape: tuple[int, ...] | None = None
        self._ids: list[tuple[int, int]] | None = None
        self._device = torch.device(scheduler.timesteps.device)
        self._plan: tuple[Any, ...] = ()
        self._own: dict[tuple[int, int], torch.Generator] = {}
        self._drawn: set[int] = set()
        self._mended = negative_variance(scheduler, float(self._arguments.get("eta", 0.0)))

    def check(self, rows: int) -> None:
        """Raise an error, before any denoiser call, if this scheduler cannot step `rows` rows.

        Raises:
            UnsupportedSchedulerError: The rows share one Brownian path, and there are more rows
                than the plain call has.
        """
        if rows > self.plain_rows and hasattr(self._inner, "noise_sampler"):
            raise UnsupportedSchedulerError(
                f"{self.name} draws one Brownian path for the whole batch, so {rows} rows cannot "
                f"extend the plain call's {self.plain_rows}; use DPMSolverMultistepScheduler with "
                "algorithm_type='sde-dpmsolver++' or EulerAncestralDiscreteScheduler."
            )

    def step(self, step: Step, x: Tensor, output: Tensor, ids: Sequence[tuple[int, int]]) -> Tensor:
        """One reverse step of every row.

        Args:
            step: The noise level of the rows, and the next one.
            x: Latents `(rows, *latent)`.
            output: The model output at `x`, one per row.
            ids: (prompt, particle) per row, without repetition.

        Returns:
            Latents at the step's next point, `(rows, *latent)`, dtype as the scheduler returns.

        Raises:
            UnsupportedSchedulerError: A jump that this solver cannot make, or see `check`.
            ValueError: `ids` does not name the rows of `x` one by one, or rows changed without
                `gather`.
        """
        self._validate(step, x, output, ids)
        inner, output = self._at(step), with_variance(self._inner, output, x)
        slots = [self._slot(i) for i in ids]
        again, self._drawn = step.index in self._drawn, self._drawn | {step.index}
        if slots == list(range(self.plain_rows)):
            result = self._run(inner, step, x, output, self._generator)
        else:
            inner, result = self._mixed(inner, step, x, output, ids, slots, again)
        self._inner, self._next, self._shape = inner, step.index + 1, tuple(x.shape)
        self._ids, self._device = list(ids), x.device
        return result

    def scale_model_input(self, step: Step, x: Tensor) -> Tensor:
        """`scale_model_input` of the scheduler at `step`, for any number of rows."""
        if not hasattr(self._inner, "scale_model_input"):
            return x
        return self._at(step).scale_model_input(x, step.t)

    def gather(self, rows: Tensor | Sequence[int]) -> None:
        """Keep, permute or duplicate the rows of the solver's history, as `x[rows]` does."""
        if self._shape is None:
            return
        shape = self._shape
        index = torch.as_tensor(rows, dtype=torch.long).flatten()
        self._inner = map_rows(self._inner, shape, lambda _, v: v[index.to(v.device)])
        self._shape, self._ids = (len(index), *shape[1:]), None

    @property
    def remembers(self) -> bool:
        """Whether it keeps history per row, so that a row cannot jump to another step."""
        return any(hasattr(self._inner, name) for name in _HISTORY)

    def draws_noise(self, steps: Sequence[Step]) -> bool:
        """Whether the scheduler, as configured and called, draws fresh noise at any of `steps`.

        Found out by running the scheduler: two runs of one row that differ in the seed only.
        """
        if not self._takes_generator:
            return False
        twins, rows = [], []
        for seed in (0, 1):
            twin = self.copy()
            twin._inner, twin._next, twin._shape, twin._ids = clone(self._fresh), 0, None, None
            twin.plain_rows, twin.images, twin._plan = 1, 1, ()
            twin._generator = torch.Generator(self._device).manual_seed(seed)
            twins.append(twin)
            rows.append(torch.zeros(1, 1, 1, 1, device=self._device))
        for step in steps:
            pairs = zip(twins, rows, strict=True)
            rows = [twin.step(step, x, torch.zeros_like(x), [(0, 0)]) for twin, x in pairs]
            if not torch.equal(rows[0].nan_to_num(), rows[1].nan_to_num()):
                return True
        return False

    def copy(self, seed: int | None = None) -> Solver:
        """An independent solver in the same state, for lookahead; this one does not change.

        Args:
            seed: `None` forks the generators, so the copy draws the noise that this solver is
                about to draw. With a seed every row of the copy draws fresh noise of its own.
        """
        twin = copy.copy(self)
        twin._own, twin._plan = {}, ()
        if self._shape is None:
            twin._inner = clone(self._inner)
        else:
            twin._inner = map_rows(self._inner, self._shape, lambda _, v: v.clone())
        if seed is not None:
            twin.seed, twin.plain_rows, twin.images = seed, 0, 0
        elif self._takes_generator:
            twin._generator = fork(self._generator, self._device)
        return twin

    def _validate(
        self, step: Step, x: Tensor, output: Tensor, ids: Sequence[tuple[int, int]]
    ) -> None:
        if not len(x) == len(output) == len(ids) == len(set(ids)):
            raise ValueError(
                f"{len(x)} rows, {len(output)} outputs, {len(set(ids))} different ids: must agree"
            )
        moved = self._ids is not None and self._ids != list(ids)
        grown = self._shape is not None and self._shape[0] != len(x)
        if (moved or grown) and step.index == self._next and self.remembers:
            raise ValueError(
                "the rows are not those of the last step, and the solver keeps history per row: "
                "call gather(rows) with the indices that selected them"
            )
        if any(self._slot(i) is None for i in ids):
            self.check(self.plain_rows + 1)

    def _seed_of(self, prompt: int) -> int:
        return row_seed(self.seed, prompt) if isinstance(self.seed, int) else self.seed[prompt]

    def _slot(self, name: tuple[int, int]) -> int | None:
        """Row of the plain call, or None for a row beyond it."""
        prompt, particle = name
        row = prompt * self.images + particle
        return row if particle < self.images and row < self.plain_rows else None

    def _at(self, step: Step) -> Any:
        """The inner scheduler, set to the step's index: timesteps may repeat."""
        inner = clone(self._inner) if step.index == self._next else self._restart(step.index)
        if hasattr(inner, "_step_index"):
            inner._step_index = step.index + self.offset
        return inner

    def _restart(self, index: int) -> Any:
        """A fresh scheduler, if it may begin at this step."""
        inner = self._fresh
        begins = any(hasattr(inner, name) for name in _RESTARTS)
        second_order = hasattr(inner, "state_in_first_order")  # no history between whole steps
        whole = second_order and (index + self.offset) % 2 == 0
        if not index or whole or not self.remembers or (begins and self._shape is None):
            return clone(inner)
        where = f"begin at step {index}"
        if self._shape is not None:
            where = f"go from step {self._next - 1} to step {index}"
        raise UnsupportedSchedulerError(
            f"{self.name} cannot {where}: its history belongs to the steps before; use "
            "DDIMScheduler or EulerDiscreteScheduler with this method"
            + (", or begin there with a new solver (ctx.solver())" if begins else "")
        )

    def _run(self, inner: Any, step: Step, x: Tensor, output: Tensor, noise: Generators) -> Tensor:
        """One call of the inner scheduler's own `step`."""
        kwargs = step_arguments(self.name, self._arguments, self._accepted, len(x))
        if step.index + self.offset in self._mended:
            kwargs["eta"] = 0.0
            clean = inner.step(output, step.t, x, **kwargs).pred_original_sample
            move = ddim(step, x, clean, float(self._arguments["eta"]))
            return move.sample(randn_tensor(x.shape, noise, x.device, output.dtype))
        if self._takes_generator:
            kwargs["generator"] = noise
        return inner.step(output, step.t, x, **kwargs, return_dict=False)[0]

    def _mixed(
        self,
        inner: Any,
        step: Step,
        x: Tensor,
        output: Tensor,
        ids: Sequence[tuple[int, int]],
        slots: list[int | None],
        again: bool,
    ) -> tuple[Any, Tensor]:
        """Step the plain batch (zeros for pruned rows) on one copy, all other rows on another.

        A step that others alone take `again` leaves the plain batch, and its noise, where they are.
        """
        plain, extra, order = self._indices(slots, x.device)
        shape = tuple(x.shape)
        others = [i for i, slot in zip(ids, slots, strict=True) if slot is None]
        blocks: list[tuple[Tensor, bool, Generators]] = []
        kept = len(ids) - len(others)
        if self.plain_rows and (kept or not again):
            blocks.append((plain, kept < self.plain_rows, self._generator))
        else:
            order = order - self.plain_rows
        if others:
            blocks.append((extra, False, self._generators(others, step, x.device)))
        parts, results = [], []
        for index, pad, noise in blocks:
            pick = partial(take, index=index, padded=pad)
            part = map_rows(inner, shape, lambda _, v, pick=pick: pick(v))
            results.append(self._run(part, step, pick(x), pick(output), noise))
            parts.append((part, (len(index), *shape[1:])))
        states = [dict(row_tensors(part, size)) for part, size in parts]
        first, size = parts[0]
        merged = map_rows(
            first, size, lambda key, _: take(torch.cat([state[key] for state in states]), order)
        )
        return merged, take(torch.cat(results), order)

    def _indices(self, slots: list[int | None], device: torch.device) -> tuple[Tensor, ...]:
        """Row indices of the plain batch (one past the end: missing), of the rest, and back."""
        if not self._plan or self._plan[0] != (slots, device):
            self._plan = ((slots, device), blocks_of(slots, self.plain_rows, device))
        return self._plan[1]

    def _generators(
        self, names: Sequence[tuple[int, int]], step: Step, device: torch.device
    ) -> list[torch.Generator]:
        user = self._generator[0] if isinstance(self._generator, list) else self._generator
        place = device if user is None else user.device
        chosen = []
        for prompt, particle in names:
            own = self._own.get((prompt, particle)) or torch.Generator(place)
            chosen.append(own.manual_seed(row_seed(self._seed_of(prompt), particle, step.index)))
        self._own = dict(zip(names, chosen, strict=True))  # those of the dead are let go
        return chosen
