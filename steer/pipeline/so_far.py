"""What a search could return at any moment, for a call that is stopped on its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer.core.types import Name, Population, Query, Step
from steer.methods.selection.budget import Finished
from steer.search.context import Context


@dataclass(eq=False)
class SoFar:
    """The best candidates of a running search, prompt by prompt.

    Finished particles come first, in the order of the call's pick; where there are too few, the
    best of the previews follow, and then what the latest denoiser call predicts. The last two are
    predictions of x0, and are returned as if they were the end of the run.

    Attributes:
        ctx: Of the call.
        finished: Particles that went all the way.
        previews: By prompt, the best `ctx.images` previewed particles: reward and x0.
        latest: The latest denoiser call and its answer.
    """

    ctx: Context
    finished: Finished = field(init=False)
    previews: dict[int, dict[Name, tuple[float, Tensor]]] = field(default_factory=dict)
    latest: tuple[Query, Tensor] | None = None

    def __post_init__(self) -> None:
        self.finished = Finished(self.ctx)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Everything that the search finishes or previews meanwhile is seen."""
        self.ctx.viewers.append(self.see)
        try:
            with self.ctx.judging.watch(self.finished.see):
                yield
        finally:
            self.ctx.viewers.remove(self.see)

    def see(self, population: Population, values: Tensor, step: Step) -> None:
        """Previews of a step: a particle's later one takes the place of its earlier one."""
        rewards = values.tolist()
        for name, x0, reward in zip(population.ids, population.x.unbind(), rewards, strict=True):
            self.previews.setdefault(name[0], {})[name] = (reward, x0.detach())
        for prompt, own in self.previews.items():
            best = sorted(own, key=lambda name: -own[name][0])[: self.ctx.images]
            self.previews[prompt] = {name: own[name] for name in best}

    def winners(self) -> Population | None:
        """`ctx.images` particles per prompt, best first; `None` where some prompt has fewer."""
        found: list[Population] = []
        for prompt in range(len(self.ctx.prompts)):
            if self.finished.complete([prompt]):
                found.append(self.finished.population([prompt]))
                continue
            rows = self._candidates(prompt)
            names = tuple(rows)[: self.ctx.images]
            if len(names) < self.ctx.images:
                return None
            found.append(Population(torch.stack([rows[name] for name in names]), names))
        return Population.join(found)

    def unfinished(self, winners: Population) -> list[Name]:
        """Which of these did not go all the way."""
        return [name for name in winners.ids if name not in self.finished.rows.get(name[0], {})]

    def _candidates(self, prompt: int) -> dict[Name, Tensor]:
        """Latents by particle, in the order in which they are taken."""
        own = self.finished.rows.get(prompt, {})
        rows = {name: own[name] for name in sorted(own, key=self.ctx.judging.rank)}
        if self.ctx.clean is not None:  # the call returns noisy latents, which no x0 is
            return rows
        previews = self.previews.get(prompt, {})
        for name in sorted(previews, key=lambda name: -previews[name][0]):
            rows.setdefault(name, previews[name][1])
        for name, x0 in self._predicted(prompt):
            rows.setdefault(name, x0)
        return rows

    def _predicted(self, prompt: int) -> Iterator[tuple[Name, Tensor]]:
        """The x0 that the latest denoiser call predicts of a prompt's particles, in their order."""
        if self.latest is None or self.ctx.model.is_flow_map:  # whose answers are jumps, not x0
            return
        query, answer = self.latest
        x0 = query.step.x0(query.latents.detach(), answer.detach())
        for row in sorted(range(len(query.ids)), key=lambda row: query.ids[row]):
            if query.ids[row][0] == prompt:
                yield query.ids[row], x0[row]
