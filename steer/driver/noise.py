"""Initial latents of particles, drawn by the pipeline's own `prepare_latents`."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.seeds import row_seed
from steer.core.types import Population
from steer.driver.solver_state import Generators


def call_seeds(generator: Generators, prompts: int, images: int, device: Any) -> tuple[int, ...]:
    """One seed per prompt, from the state of the generator that the plain call would use.

    With a list of generators every prompt's seed comes from its own one, so that a prompt gives
    the same images in a call of several prompts and in one alone. Without a generator the state of
    the device's global one is read, and not advanced, so that `torch.manual_seed` has effect.
    """
    if isinstance(generator, list) and len(generator) >= prompts * images:
        return tuple(_digest(generator[p * images].get_state()) for p in range(prompts))
    if isinstance(generator, list):
        generator = generator[0] if generator else None
    if generator is not None:
        state = generator.get_state()
    elif torch.device(device).type == "cuda":
        state = torch.cuda.get_rng_state(device)
    else:
        state = torch.get_rng_state()
    seed = _digest(state)
    return tuple(row_seed(seed, p) if p else seed for p in range(prompts))


def _digest(state: Tensor) -> int:
    content = state.cpu().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


class Source:
    """Draws initial latents; stands in for `pipe.prepare_latents` during a guided call.

    The plain rows (particles below `images`) are drawn by the pipeline exactly as the plain call
    draws them. Every other particle is drawn by the same function from a generator seeded by
    (its prompt's seed, particle), so that it is the same whatever the lane width.

    Args:
        pipe: The pipeline.
        prompts, images, lane_width: The batch is prompts x (images x lane_width) rows.
        seeds: One per prompt.
    """

    def __init__(
        self, pipe: Any, *, prompts: int, images: int, lane_width: int, seeds: tuple[int, ...]
    ) -> None:
        self.prompts, self.images, self.lane_width, self.seeds = prompts, images, lane_width, seeds
        self.pipe_name = type(pipe).__name__
        self.prepare = pipe.prepare_latents if can_widen(pipe) else None
        self.scheduler: Any = None
        self.lane: Tensor | None = None
        self._bound: inspect.BoundArguments | None = None
        self._refills = "strength" in inspect.signature(type(pipe).__call__).parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's `prepare_latents`, for the widened batch."""
        assert self.prepare is not None
        signature = inspect.signature(self.prepare)
        self._bound = signature.bind(*args, **kwargs)
        if self.lane_width == 1:
            return self.prepare(*args, **kwargs)
        plain = self._prepare(self.prompts * self.images)
        further = [
            self._prepare(self.prompts, self._generators(k), fresh=True)
            for k in range(self.images, self.images * self.lane_width)
        ]
        if not isinstance(plain, tuple):
            return self._weave(plain, further)
        # the rest (position ids, masks) is per row where it is shaped like it
        rows = len(plain[0])
        return tuple(
            self._weave(part, [more[i] for more in further])
            if isinstance(part, Tensor) and part.ndim == plain[0].ndim and len(part) == rows
            else part
            for i, part in enumerate(plain)
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
        generators = self._generators(particle)
        if self._bound is not None:
            drawn = self._prepare(self.prompts, generators, fresh=True)
            return (drawn[0] if isinstance(drawn, tuple) else drawn).to(self.lane)
        if self._refills:
            raise UnsupportedPipelineError(
                f"{self.pipe_name} starts from an image and has no prepare_latents(batch_size, "
                "generator) to draw further starts with; use a method of one particle."
            )
        shape = (self.prompts, *self.lane.shape[1:])
        noise = randn_tensor(shape, generators, self.lane.device, self.lane.dtype)
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _generators(self, particle: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row_seed(s, particle)) for s in self.seeds]

    def _prepare(self, rows: int, generator: Any = None, fresh: bool = False) -> Any:
        """The pipeline's `prepare_latents` for `rows` rows; `fresh` drops the user's latents."""
        assert self.prepare is not None and self._bound is not None
        bound = inspect.BoundArguments(self._bound.signature, self._bound.arguments.copy())
        given = bound.arguments
        given["batch_size"] = rows
        if "num_images_per_prompt" in given:
            given["num_images_per_prompt"] = 1
        if fresh:
            given["generator"] = generator
            given.pop("latents", None)
        timestep = given.get("timestep")
        if isinstance(timestep, Tensor) and timestep.ndim == 1:
            given["timestep"] = timestep[:rows]
        return self.prepare(*bound.args, **bound.kwargs)

    def _weave(self, plain: Tensor, further: Sequence[Tensor]) -> Tensor:
        """Plain rows `(P * images)` and one `(P)` batch per further particle, prompt-major."""
        rows = [plain.unflatten(0, (self.prompts, self.images))]
        rows += [drawn.to(plain)[:, None] for drawn in further]
        return torch.cat(rows, 1).flatten(0, 1)


def can_widen(pipe: Any) -> bool:
    """Whether the pipeline draws its latents in a function that takes a batch size."""
    prepare = getattr(pipe, "prepare_latents", None)
    if not callable(prepare):
        return False
    return {"batch_size", "generator"} <= set(inspect.signature(prepare).parameters)
