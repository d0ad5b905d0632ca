"""Rollouts of trees: from fresh noise or from a state on the way, side by side to the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.core.types import Name, Population
from steer.methods.particles.branching import Mover, join_states
from steer.methods.particles.tree_nodes import Grove, Node
from steer.search.context import Context
from steer.search.short_runs import Asking


@dataclass(eq=False)
class Rollouts:
    """What every round of a tree search rolls out with.

    Attributes:
        ctx: The call.
        mover: Moves the first round's rows, the plain call's own among them where it may.
        start: The first noises.
        first: Number of the first of them; further ones are numbered on.
        groves: The trees, by prompt.
        points: Denoiser calls before every branching state, rising.
    """

    ctx: Context
    mover: Mover
    start: Population
    first: int
    groves: dict[int, Grove]
    points: Sequence[int]

    def round(self, picks: Sequence[Node]) -> Asking[Population]:
        """One rollout from every pick to the end; those that start later join on the way.

        Args:
            picks: States to expand, prompt by prompt; as often as they shall be.

        Returns:
            The finished particles. Every branching state that they passed is in its tree.
        """
        noises = self._noises([node for node in picks if node.depth == 0])
        tips = {name: self.groves[name[0]].root for name in noises.ids} if noises else {}
        now, output = noises, None
        starts = [self.points[node.depth - 1] for node in picks if node.depth]
        for step in self.ctx.steps[0 if noises else min(starts) :]:
            if now is not None:
                output = yield from self.mover.ask(now, step)
            if step.index in self.points:
                if now is not None:
                    self._pass(tips, now, output)
                depth = self.points.index(step.index) + 1
                more = self._join(tips, [node for node in picks if node.depth == depth], depth)
                if more is not None and now is not None and output is not None:
                    now, output = join_states((now, output), more)
                elif more is not None:
                    now, output = more
            assert now is not None and output is not None
            now = yield from self.mover.step(step, now, output)
        assert now is not None
        self._pass(tips, now, None)
        for node in picks:
            node.growing -= 1
        self.mover = self.mover.again()
        return now

    def _noises(self, roots: Sequence[Node]) -> Population | None:
        """An initial noise for every pick of a root: those of `start`, then further ones."""
        if not roots:
            return None
        ready: list[int] = []
        further: dict[int, list[int]] = {}
        size = len(self.start) // len(self.groves)
        for number, grove in enumerate(self.groves.values()):
            wanted = sum(node is grove.root for node in roots)
            for k in range(grove.drawn, grove.drawn + wanted):
                if k < size:
                    ready.append(number * size + k)
                else:
                    further.setdefault(self.first + k, []).append(grove.prompt)
            grove.drawn += wanted
        parts = [self.start.take(ready)] if ready else []
        parts += [self.ctx.draw_latents([k], further[k]) for k in sorted(further)]
        drawn = Population.join(parts)
        self.mover.adopt(drawn)
        self.ctx.tell_descent("branch", drawn.ids, None, [node.name for node in roots])
        return drawn

    def _join(
        self, tips: dict[Name, Node], nodes: Sequence[Node], depth: int
    ) -> tuple[Population, Tensor] | None:
        """States at which rollouts begin, with the outputs that the denoiser gave there."""
        if not nodes:
            return None
        names = self.mover.name_children([node.name for node in nodes])
        tips |= dict(zip(names, nodes, strict=True))
        here = self.ctx.steps[self.points[depth - 1]]
        self.ctx.tell_descent("branch", names, here, [node.name for node in nodes])
        x = torch.stack([node.x for node in nodes if node.x is not None])
        output = torch.stack([node.output for node in nodes if node.output is not None])
        return Population(x, names), output

    def _pass(self, tips: dict[Name, Node], now: Population, output: Tensor | None) -> None:
        """Every row's state becomes a node of its tree: branching with an output, else a leaf."""
        outputs = [None] * len(now) if output is None else list(output.unbind())
        for name, x, answer in zip(now.ids, now.x.unbind(), outputs, strict=True):
            tips[name] = self.groves[name[0]].remember(tips[name].child(name, x, answer))
