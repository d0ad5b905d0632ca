"""Initial latents of particles, drawn by the pipeline's own `prepare_latents`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from steer.core.errors import AGAIN, LaneWidthError, UnsupportedPipelineError
from steer.core.seeds import row_seed
from steer.core.types import Population
from steer.driver.axes import in_loop_order
from steer.driver.seeds import call_seeds
from steer.driver.solver_state import Generators


class Source:
    """Draws initial latents; stands in for `pipe.prepare_latents` during a guided call.

    The plain rows (particles below `images`) are drawn by the pipeline exactly as the plain call
    draws them. Every other particle is drawn by the same function from a generator seeded by
    (its prompt's seed, particle), so that it is the same whatever the lane width.

    Args:
        pipe: The pipeline.
        prompts, images, lane_width: The batch is prompts x (images x lane_width) rows.
        seeds: One per prompt.
        generator: The user's.
        device: Where the pipeline computes; asking the pipeline costs milliseconds.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        prompts: int,
        images: int,
        lane_width: int,
        seeds: tuple[int, ...],
        generator: Generators = None,
        device: Any = "cpu",
    ) -> None:
        self.prompts, self.images, self.lane_width, self.seeds = prompts, images, lane_width, seeds
        self.generator, self.device = generator, device
        self.pipe_name = type(pipe).__name__
        self.prepare = _prepare_of(pipe, _BATCH) or _noising_of(pipe)
        self.scheduler: Any = None
        self.lane: Tensor | None = None
        self._bound: inspect.BoundArguments | None = None
        self._plain: Any = None
        self._noises: dict[int, Tensor] = {}
        self.redraw = getattr(pipe, "redraw", None)
        self._refills = "strength" in inspect.signature(type(pipe).__call__).parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's `prepare_latents`, for the widened batch."""
        assert self.prepare is not None
        self._bound = inspect.signature(self.prepare).bind(*args, **kwargs)
        if self.lane_width == 1:
            self._plain = self.prepare(*args, **kwargs)
            return self._plain
        self._check_width()
        plain = self._plain = self._prepare(self.prompts * self.images)
        further = [self._draw(k) for k in range(self.images, self.images * self.lane_width)]
        if not isinstance(plain, tuple):
            return self._weave(plain, further)
        # the rest is per row where it is shaped like the latents: conditions, the plain call's own,
        # as further particles have them in narrow lanes
        latents, *rest = plain
        return (
            self._weave(latents, [more[0] for more in further]),
            *(
                self._weave(part, [part[:: self.images]] * len(further))
                if isinstance(part, Tensor)
                and part.ndim == latents.ndim
                and len(part) == len(latents)
                else part
                for part in rest
            ),
        )

    def _check_width(self) -> None:
        """Raise LaneWidthError where the pipeline asks for other rows than the lane has.

        Also where it has drawn from the user's generator before: for a wider batch it drew more
        than the plain call does.
        """
        assert self._bound is not None
        given = {**_defaults(self._bound.signature), **self._bound.arguments}
        rows = given["batch_size"] * (given.get("num_images_per_prompt") or 1)
        wanted = self.prompts * self.images * self.lane_width
        if rows != wanted:
            raise LaneWidthError(
                f"{self.pipe_name} draws latents of {rows} rows, where its batch should have "
                f"{wanted}"
            )
        if call_seeds(self.generator, self.prompts, self.images, self.device) != self.seeds:
            raise LaneWidthError(
                f"{self.pipe_name} draws from the generator before it draws latents, and more for "
                "a wider batch"
            )

    def check_lane(self, latents: Tensor) -> None:
        """Raise an error unless the pipeline's batch has the rows that were asked for.

        Raises:
            LaneWidthError: Of a batch that was widened.
            UnsupportedPipelineError: Of the plain call.
        """
        wanted = self.prompts * self.images * self.lane_width
        if len(latents) == wanted:
            return
        kind = LaneWidthError if self.lane_width > 1 else UnsupportedPipelineError
        raise kind(
            f"{self.pipe_name}: its loop cannot be driven (it steps {len(latents)} rows, where "
            f"{self.prompts} prompts x {self.images} images x lane width {self.lane_width} make "
            f"{wanted}); {AGAIN}"
        )

    @property
    def prepared(self) -> dict[str, Any]:
        """What the pipeline gave `prepare_latents` by name; empty before, and where it has none."""
        return {} if self._bound is None else dict(self._bound.arguments)

    def draw(self, particles: Sequence[int], prompts: Sequence[int]) -> Population:
        """Initial latents of `particles` for each of `prompts`, prompt-major."""
        lane = self.lane
        if lane is None:
            raise RuntimeError("draw before the pipeline's first step")
        per_prompt = self.images * self.lane_width
        own = lane.unflatten(0, (self.prompts, per_prompt))
        if list(particles) == list(range(per_prompt)) and len(prompts) == self.prompts:
            x = lane
        else:
            rows = [own[:, k] if k < per_prompt else self._fresh(k) for k in particles]
            x = torch.stack(rows, 1)[list(prompts)].flatten(0, 1)
        return Population(x, tuple((p, k) for p in prompts for k in particles))

    def _fresh(self, particle: int) -> Tensor:
        assert self.lane is not None
        if self._bound is not None:
            drawn = self._draw(particle)
            return self._fitting(drawn[0] if isinstance(drawn, tuple) else drawn)
        if self.redraw is not None:
            return self._fitting(self.redraw(self._generators(particle)))
        if self._refills:
            raise UnsupportedPipelineError(
                f"{self.pipe_name} starts from an image and has no prepare_latents(batch_size, "
                "generator) to draw further starts with; use a method of one particle."
            )
        shape = (self.prompts, *self.lane.shape[1:])
        noise = randn_tensor(shape, self._generators(particle), self.lane.device, self.lane.dtype)
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _draw(self, particle: int) -> Any:
        """What `prepare_latents` returns for one particle of every prompt.

        Prompt by prompt where the pipeline takes no list of generators for several prompts.

        Raises:
            UnsupportedPipelineError: Neither goes.
        """
        try:
            return self._prepare(self.prompts, self._generators(particle), fresh=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # pipelines raise many kinds
            if self.prompts == 1:
                raise
            with suppress(Exception):
                return self._draw_apart(particle)
            raise UnsupportedPipelineError(
                f"{self.pipe_name} takes no list of generators for several prompts ({error}): call "
                "it with one prompt at a time"
            ) from error

    def _draw_apart(self, particle: int) -> Any:
        parts = [
            self._prepare(1, generator, fresh=True, prompt=prompt)
            for prompt, generator in enumerate(self._generators(particle))
        ]
        if not isinstance(parts[0], tuple):
            return torch.cat(parts)
        return tuple(
            torch.cat(same) if isinstance(same[0], Tensor) and same[0].ndim else same[0]
            for same in zip(*parts, strict=True)
        )

    def _fitting(self, drawn: Tensor) -> Tensor:
        """Drawn latents like the lane's.

        Raises:
            UnsupportedPipelineError: The loop steps latents of another shape.
        """
        assert self.lane is not None
        drawn = in_loop_order(drawn, self._plain, self.lane)
        if drawn.shape[1:] == self.lane.shape[1:]:
            return drawn.to(self.lane)
        raise UnsupportedPipelineError(
            f"{self.pipe_name}: its loop cannot be driven (it draws latents "
            f"{tuple(drawn.shape[1:])} and steps {tuple(self.lane.shape[1:])} of them); {AGAIN}"
        )

    def noises(self, names: Sequence[tuple[int, int]], noise: Tensor) -> Tensor:
        """The noise that each particle was drawn with, where the pipeline noises an image by it.

        Args:
            names: (prompt, particle) per row.
            noise: Of the plain rows, as the pipeline has it.

        Returns:
            `(len(names), *latent)`.
        """
        place = self._place_of(noise)
        rows = []
        for prompt, particle in names:
            row = prompt * self.images + particle
            if particle < self.images and row < len(noise):
                rows.append(noise[row])
            else:
                rows.append(self._noise(particle, place, noise)[prompt])
        return torch.stack(rows).to(noise)

    def _place_of(self, noise: Tensor) -> int | None:
        """Where `prepare_latents` returns this noise, if it does."""
        parts = self._plain if isinstance(self._plain, tuple) else ()
        for place, part in enumerate(parts):
            if isinstance(part, Tensor) and part.shape == noise.shape and torch.equal(part, noise):
                return place
        return None

    def _noise(self, particle: int, place: int | None, like: Tensor) -> Tensor:
        """The noise of one particle for every prompt."""
        if particle not in self._noises:
            if place is None:
                shape, own = (self.prompts, *like.shape[1:]), self._generators(particle)
                self._noises[particle] = randn_tensor(shape, own, like.device, like.dtype)
            else:
                self._noises[particle] = self._draw(particle)[place]
        return self._noises[particle]

    def _generators(self, particle: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row_seed(s, particle)) for s in self.seeds]

    def _prepare(
        self, rows: int, generator: Any = None, fresh: bool = False, prompt: int | None = None
    ) -> Any:
        """The pipeline's `prepare_latents` for `rows` rows.

        Args:
            rows: The batch size.
            generator: With `fresh`, which drops the user's latents.
            fresh: Whether the latents are another particle's.
            prompt: With what there is for this prompt alone.
        """
        assert self.prepare is not None and self._bound is not None
        bound = inspect.BoundArguments(self._bound.signature, self._bound.arguments.copy())
        given = bound.arguments
        if "shape" in given:  # the image's latents, noised
            given.update((n, v[:rows]) for n, v in given.items() if isinstance(v, Tensor))
            given |= {"shape": (rows, *given["shape"][1:]), "generator": generator}
            return self.prepare(*bound.args, **bound.kwargs)
        given["batch_size"] = rows
        if "num_images_per_prompt" in given:
            given["num_images_per_prompt"] = 1
        if fresh:
            given["generator"] = generator
            given.pop("latents", None)
        if prompt is not None:
            given.update((n, _row(value, prompt, self.prompts)) for n, value in given.items())
        timestep = given.get("timestep")
        if isinstance(timestep, Tensor) and timestep.ndim == 1:
            given["timestep"] = timestep[:rows]
        return self.prepare(*bound.args, **bound.kwargs)

    def _weave(self, plain: Tensor, further: Sequence[Tensor]) -> Tensor:
        """Plain rows `(P * images)` and one `(P)` batch per further particle, prompt-major."""
        rows = [plain.unflatten(0, (self.prompts, self.images))]
        rows += [drawn.to(plain)[:, None] for drawn in further]
        return torch.cat(rows, 1).flatten(0, 1)


def _defaults(signature: inspect.Signature) -> dict[str, Any]:
    return {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}


def _row(value: Any, prompt: int, prompts: int) -> Any:
    """What a tensor, or a list of images, holds for one of several prompts."""
    rows = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 1)
    if not rows or not len(value) or len(value) % prompts:
        return value
    each = len(value) // prompts
    return value[prompt * each : (prompt + 1) * each]


def can_widen(pipe: Any) -> bool:
    """Whether the pipeline draws its latents in a function that takes a batch size."""
    return _prepare_of(pipe, _BATCH) is not None


_BATCH = {"batch_size", "generator"}


def _prepare_of(pipe: Any, needed: set[str]) -> Callable[..., Any] | None:
    """What draws latents, where it takes these arguments: diffusers has two names for it."""
    for name in ("prepare_latents", "prepare_intermediate_images"):
        found = getattr(pipe, name, None)
        if callable(found):
            return found if needed <= set(inspect.signature(found).parameters) else None
    return None


def _noising_of(pipe: Any) -> Callable[..., Any] | None:
    """What noises the latents of a given image of the batch's shape (Kandinsky 2.1)."""
    return _prepare_of(pipe, {"latents", "latent_timestep", "shape", "generator"})
