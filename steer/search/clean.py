"""Loops that end before the noise does (`denoising_end`): their images are judged by x0."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.types import Name, Population, Step


@dataclass(eq=False)
class Clean:
    """The x0 of every particle at the last step; its noisy latents go to another pipeline."""

    x0: dict[Name, Tensor] = field(default_factory=dict)

    def note(self, population: Population, step: Step, output: Tensor) -> None:
        """Keep the x0 that the model output implies, if this is the last step."""
        if step.index + 1 == step.count:
            x0 = step.x0(population.x.detach(), output.detach())
            self.x0 |= dict(zip(population.ids, x0, strict=True))

    def of(self, population: Population) -> Tensor:
        """`(rows, *latent)`.

        Raises:
            UnsupportedPipelineError: Latents that were made after the last denoiser call.
        """
        if not all(name in self.x0 for name in population.ids):
            raise UnsupportedPipelineError(
                "the pipeline's loop ends before the noise does (denoising_end), and the method "
                "makes new particles after its last step, whose images cannot be seen: use BestOfN "
                "or Prune"
            )
        return torch.stack([self.x0[name] for name in population.ids])
