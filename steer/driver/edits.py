"""What an inpainting pipeline does to latents after every step, learned while it does it.

Inpainting with an ordinary denoiser puts the given image, noised to the next step's level, back
outside the mask after every `step`, and the clean image after the last one. A search moves between
particles and steps, so the noise has to be the particle's own and the level that of the next query;
both are put in where the pipeline asks its scheduler for them (`add_noise`, `scale_noise`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steer.core.errors import AGAIN, UnsupportedPipelineError
from steer.core.types import Name, Query
from steer.driver.solver_state import clone


Noises = Callable[[Sequence[Name], Tensor], Tensor]
"""`(names, noise of the pipeline's rows)` to the noise of each of these particles."""

_CLEAN = ("original_samples", "sample")
_TIMES = ("timesteps", "timestep")
_ROUNDING = 0.01  # half precision, where image and latents are alike


class Edits:
    """The given image under the mask of one call.

    Args:
        noises: The noise of any particle.

    Attributes:
        clean: The given image's latents, `(lane rows or 1, *latent)`.
        mask: 1 where the denoiser decides and 0 where the image is given, `(1, *latent)`; known
            after the first edit.
    """

    def __init__(self, noises: Noises) -> None:
        self.noises = noises
        self.clean: Tensor | None = None
        self.mask: Tensor | None = None
        self._put: Tensor | None = None
        self._before: Tensor | None = None

    def noised(
        self, scheduler: Any, name: str, args: Any, kwargs: Any, query: Query | None, offset: int
    ) -> Tensor:
        """What the pipeline gets for `scheduler.add_noise` (or `scale_noise`) after a step.

        Args:
            scheduler: The user's scheduler, never stepped.
            name: Which of the two functions.
            args, kwargs: Its arguments.
            query: What is evaluated next; `None` at the end.
            offset: `Schedule.offset`.
        """
        twin = clone(scheduler)
        function = getattr(twin, name)
        bound = inspect.signature(function).bind(*args, **kwargs)
        given = bound.arguments
        clean = next(given[key] for key in _CLEAN if key in given)
        if query is None:
            return clean
        if clean.shape[1:] != query.latents.shape[1:]:
            raise UnsupportedPipelineError(
                "this pipeline's loop cannot be driven: it puts a given image into the latents in "
                f"another layout ({tuple(clean.shape)}); {AGAIN}."
            )
        self.clean = clean
        if query.step.index == 0:  # drawn latents are as they were drawn
            return query.latents.to(clean.dtype)
        times = next(key for key in _TIMES if key in given)
        given["noise"] = self.noises(query.ids, given["noise"])
        given[times] = query.step.t.to(given[times]).expand(given[times].shape)
        if hasattr(twin, "_step_index"):
            twin._step_index = query.step.index + offset
        put = function(*bound.args, **bound.kwargs)
        self._put, self._before = put, query.latents.detach().clone()
        return put

    def learn(self, after: Tensor) -> None:
        """Read the mask off the first edit; `after` are the latents that the denoiser got."""
        if self.mask is not None or self._put is None or self._before is None:
            return
        put, before = self._put.to(after), self._before.to(after)
        wide = (before - put).float()
        share = ((after - put).float() / torch.where(wide == 0, 1.0, wide)).clamp(0, 1)
        surest = wide.abs().argmax(0, keepdim=True)  # elsewhere rounding is a larger part of it
        share = share.gather(0, surest)
        whole = share.round()
        self.mask = torch.where((share - whole).abs() < _ROUNDING, whole, share).to(after.dtype)
        self._put = self._before = None

    def keep(self, before: Tensor, after: Tensor) -> None:
        """Read mask and image off a pipeline that puts back, clean, what it had outside the mask.

        Args:
            before: What `step` returned, of a step after the first.
            after: What the denoiser got.
        """
        if self.mask is None:
            self.mask = (before == after).all(0, keepdim=True).to(after.dtype)
            self.clean = after

    def finish(self, latents: Tensor) -> Tensor:
        """Clean latents as the pipeline returns them: the given image outside the mask."""
        if self.mask is None or self.clean is None:
            return latents
        clean, mask = self.clean.to(latents), self.mask.to(latents)
        if len(clean) > 1 and not all(torch.equal(clean[0], row) for row in clean[1:]):
            raise UnsupportedPipelineError(
                "several images to inpaint in one call: their candidates cannot be judged apart; "
                "call the pipeline once per image"
            )
        return (1 - mask) * clean[:1] + mask * latents
