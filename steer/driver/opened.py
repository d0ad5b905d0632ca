"""The pipeline's first denoiser call, made before the search asks anything: what it serves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steer.core.types import Query


@dataclass(frozen=True, eq=False)
class Opened:
    """What the first call answered, and what the search's first query asks beyond it.

    Attributes:
        output: Of all slots; of those that were evaluated it holds true.
        missing: Slots that the query asks and the first call did not evaluate at its latents.
        whole: Whether those are all slots that the query asks.
    """

    output: Tensor
    missing: tuple[int, ...]
    whole: bool

    @classmethod
    def of(
        cls,
        output: Tensor,
        query: Query,
        sample: Tensor,
        evaluated: tuple[int, ...],
        elsewhere: bool = False,
    ) -> Opened:
        """For the first query; `sample` are the pipeline's own latents.

        `evaluated` are the slots of them that the call was asked; empty for all. `elsewhere`: a
        flow map was asked for another jump than the query's.
        """
        x = query.latents
        slots = query.slots or tuple(range(len(x)))
        if query.step.index or query.grad or elsewhere or x.shape != sample.shape:
            return cls(output, slots, True)
        known = [slot for slot in slots if not evaluated or slot in evaluated]
        if x is not sample and not torch.equal(x[known], sample[known]):
            return cls(output, slots, True)
        missing = tuple(slot for slot in slots if slot not in known)
        return cls(output, missing, len(missing) == len(slots))

    def completed(self, answer: Tensor) -> Tensor:
        """The query's answer, of which the first call knew some slots."""
        if self.whole:
            return answer
        found = self.output.clone()
        found[list(self.missing)] = answer[list(self.missing)]
        return found


def same(sample: Tensor, latents: Tensor) -> bool:
    """Whether these are the same latents, but for a cast."""
    if sample.shape != latents.shape:
        return False
    return torch.allclose(sample.float(), latents.float(), rtol=1e-2, atol=1e-3, equal_nan=True)
