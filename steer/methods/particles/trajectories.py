"""Trajectories that stand at different steps: what each holds, and how they move together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steer.core.types import Name, Population, Step
from steer.driver.solver import Solver


@dataclass(frozen=True, eq=False)
class State:
    """A trajectory at one step: before the denoiser's call, judged after it, or finished.

    Attributes:
        name: The particle.
        index: Of the step; the number of steps where it is finished.
        x: Latents `(*latent)`.
        solver: What moves it, at that step.
        output: The denoiser's output, where it was asked.
        value: Reward of the preview, or of the finished image.
    """

    name: Name
    index: int
    x: Tensor
    solver: Solver
    output: Tensor | None = None
    value: float = -math.inf


@dataclass(eq=False)
class Line:
    """The search for one returned image.

    Attributes:
        tip: Where it is.
        left: Denoiser rows that it may still spend.
        left_behind: By step, the best state there that it was taken back from.
        finished: All finished states.
        done: Whether it is over.
    """

    tip: State
    left: int
    left_behind: dict[int, State] = field(default_factory=dict)
    finished: list[State] = field(default_factory=list)
    done: bool = False


def population(states: Sequence[State]) -> Population:
    """The states as rows, in their order."""
    return Population(torch.stack([s.x for s in states]), tuple(s.name for s in states))


def part(here: Sequence[Line], leaving: Sequence[Line]) -> None:
    """Solvers of their own, as they are now, for lines that leave those they came with."""
    for solver in dict.fromkeys(line.tip.solver for line in leaving):
        together = [line for line in here if line.tip.solver is solver]
        if len(together) == 1:  # it keeps the solver
            continue
        staying = [row for row, line in enumerate(together) if line not in leaving]
        for row, line in enumerate(together):
            if line in leaving:
                own = solver.copy()
                own.gather([row])
                line.tip = replace(line.tip, solver=own)
        solver.gather(staying)


def move(step: Step, lines: Sequence[Line]) -> None:
    """Every line one step on; those that never left each other by one call of their solver."""
    for solver in dict.fromkeys(line.tip.solver for line in lines):
        together = [line for line in lines if line.tip.solver is solver]
        now = population([line.tip for line in together])
        output = torch.stack([line.tip.output for line in together if line.tip.output is not None])
        moved = solver.step(step, now.x, output, now.ids)
        for line, x in zip(together, moved.unbind(), strict=True):
            line.tip = replace(line.tip, index=step.index + 1, x=x, output=None)
