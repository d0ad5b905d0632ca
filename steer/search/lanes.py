"""Any population through the pipeline's fixed batch: which rows run together, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steer.core.types import Name


@dataclass(frozen=True)
class Lane:
    """One denoiser call.

    Attributes:
        rows: Population row in every slot of the pipeline's batch, padding included.
        slots: Slot of every row that is answered here, by population row.
    """

    rows: tuple[int, ...]
    slots: dict[int, int]


def lanes_of(ids: Sequence[Name], prompts: int, per_prompt: int) -> list[Lane]:
    """Cut a population into batches of `prompts` x `per_prompt` rows, each with its own prompt.

    Slots that no row needs repeat one (of the same prompt where there is one); their answers are
    dropped, and their cost is counted.
    """
    waiting: list[list[int]] = [[] for _ in range(prompts)]
    for row, (prompt, _) in enumerate(ids):
        waiting[prompt].append(row)
    count = max(-(-len(rows) // per_prompt) for rows in waiting)
    lanes = []
    for number in range(count):
        rows: list[int] = []
        slots: dict[int, int] = {}
        for own in waiting:
            here = own[number * per_prompt : (number + 1) * per_prompt]
            slots |= {row: len(rows) + i for i, row in enumerate(here)}
            spare = here[-1] if here else (own[-1] if own else 0)
            rows += here + [spare] * (per_prompt - len(here))
        lanes.append(Lane(tuple(rows), slots))
    return lanes
