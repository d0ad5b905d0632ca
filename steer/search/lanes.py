"""Any population through the pipeline's fixed batch: which rows run together, and the way back."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from steer.core.types import Name, Population, Query, Step


@dataclass(frozen=True)
class Lane:
    """One denoiser call.

    Attributes:
        rows: Population row in every slot of the pipeline's batch, padding included.
        slots: Slot of every row that is answered here, by population row.
    """

    rows: tuple[int, ...]
    slots: dict[int, int]

    @property
    def padding(self) -> int:
        """Slots that no row needs."""
        return len(self.rows) - len(self.slots)


@lru_cache(maxsize=8)
def lanes_of(ids: tuple[Name, ...], prompts: int, per_prompt: int) -> tuple[Lane, ...]:
    """Cut a population into batches of `prompts` x `per_prompt` rows, each with its own prompt.

    Slots that no row needs repeat one (of the same prompt where there is one); their answers are
    dropped. Where the denoiser takes narrower batches they cost nothing (`steer.driver.narrow`);
    elsewhere their cost is counted.
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
    return tuple(lanes)


def ask(
    lanes: Sequence[Lane], population: Population, step: Step, grad: bool
) -> Generator[Query, Tensor, Tensor]:
    """The denoiser's output for every row, `(rows, *latent)`, one query for each lane."""
    x, answers = population.x, []
    for lane in lanes:
        whole = lane.rows == tuple(range(len(population)))
        with torch.set_grad_enabled(grad or torch.is_grad_enabled()):
            names = tuple(population.ids[row] for row in lane.rows)
            slots = tuple(sorted(lane.slots.values())) if lane.padding else ()
            query = Query(x if whole else x[list(lane.rows)], step, grad, names, slots)
        version = query.latents._version
        answer = yield query
        if not whole and not grad and query.latents._version != version:
            x[list(lane.slots)] = query.latents[list(lane.slots.values())]  # a callback wrote
        with torch.set_grad_enabled(grad or torch.is_grad_enabled()):
            answers.append(answer if whole else answer[list(lane.slots.values())])
    if len(answers) == 1:
        return answers[0]
    rows = [row for lane in lanes for row in lane.slots]
    back = sorted(range(len(rows)), key=rows.__getitem__)
    with torch.set_grad_enabled(grad or torch.is_grad_enabled()):
        return torch.cat(answers)[back]


def in_pieces(population: Population, size: int) -> list[Population]:
    """The population in pieces of at most `size` rows of every prompt, prompt-major."""
    number: dict[int, int] = {}
    pieces: dict[int, list[int]] = {}
    for row, (prompt, _) in enumerate(population.ids):
        place = number.get(prompt, 0)
        number[prompt] = place + 1
        pieces.setdefault(place // size, []).append(row)
    return [population.take(rows) for rows in pieces.values()]
