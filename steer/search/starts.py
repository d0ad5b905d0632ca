"""Initial latents that a method made itself: their names, where they came from, and their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.core.seeds import row_seed
from steer.core.types import Name, Population, wide


FIRST_MADE = 100_000
"""Particles from this number on were made by a method, not drawn by the pipeline."""


@dataclass(eq=False)
class Starts:
    """Names for particles that no draw has, and what is known of them.

    Attributes:
        seeds: One per prompt; all randomness of a row hangs on its prompt's.
        latents: Initial latents by name, of particles that begin at the first step.
        origin: For a copy of another particle's initial latents, that particle.
        changed: Particles whose initial latents are no draw's, and copies of them.
        log_weights: Where a method drew initial latents from another law than white noise: the
            log density of white noise over that law's, up to one constant per prompt.
    """

    seeds: tuple[int, ...] = (0,)
    latents: dict[Name, Tensor] = field(default_factory=dict)
    origin: dict[Name, Name] = field(default_factory=dict)
    changed: set[Name] = field(default_factory=set)
    log_weights: dict[Name, float] = field(default_factory=dict)
    _given: dict[int, int] = field(default_factory=dict)

    def names(self, prompts: Sequence[int]) -> tuple[Name, ...]:
        """A new particle per entry, numbered per prompt: other prompts do not change the names."""
        names = []
        for prompt in prompts:
            count = self._given.get(prompt, 0)
            self._given[prompt] = count + 1
            names.append((prompt, FIRST_MADE + count))
        return tuple(names)

    def adopt(
        self, x: Tensor, prompts: Sequence[int], origin: Sequence[Name] | None = None
    ) -> Population:
        """Initial latents `(rows, *latent)` as new particles of these prompts.

        Ask once for all rows and not lane by lane: the names follow the order of the rows.
        """
        names = self.names(prompts)
        self.keep(names, x.unbind())
        self.origin |= dict(zip(names, origin or (), strict=False))
        sources = [None] * len(names) if origin is None else origin
        pairs = zip(names, sources, strict=True)
        self.changed |= {name for name, old in pairs if old is None or old in self.changed}
        return Population(x, names)

    def keep(self, names: Sequence[Name], latents: Sequence[Tensor]) -> None:
        """Remember the initial latents `(*latent)` of each of these particles."""
        self.latents |= dict(zip(names, latents, strict=True))

    def noise(self, names: Sequence[Name], salt: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard normal rows `(len(names), *latent)`, float32 at least, each from its own seed.

        A row depends on (its prompt's seed, particle, salt) and on nothing else.
        """
        dtype, rows = wide(like[:0]).dtype, []
        for prompt, particle in names:
            generator = torch.Generator().manual_seed(
                row_seed(self.seeds[prompt], -1, particle, *salt)
            )
            rows.append(torch.randn(like.shape[1:], generator=generator, dtype=dtype))
        return torch.stack(rows).to(like.device)
