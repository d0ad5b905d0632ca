"""Populations that branch: moves with fresh noise, children's names, and who goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer.core.checks import share
from steer.core.ddim import ddim
from steer.core.errors import UnsupportedSchedulerError
from steer.core.types import Name, Population, Step
from steer.driver.solver import Solver
from steer.search.context import Context
from steer.search.kernels.choose import (
    aim,
    check_kernel,
    choose_kernel,
    is_silent,
    own_moves,
)
from steer.search.kernels.draws import Draw, Kernel, finish_move
from steer.search.short_runs import Asking, short_grid


def check_moves(kernel: object, eta: float) -> None:
    """Raise ValueError unless these are a kernel and a share of fresh noise."""
    share("eta", eta, "fresh noise")
    check_kernel(kernel, eta)
    if getattr(kernel, "grad", False) or getattr(kernel, "through", None) == "map":
        raise ValueError(
            f"kernel={kernel!r} needs recorded denoiser calls, which searches do not make; use "
            "SMC(proposal=...) with it"
        )


@dataclass(eq=False)
class Mover:
    """Reverse steps with fresh noise, for rows that branch and drop out.

    The law of a step is chosen as `SMC` does: the pipeline's own scheduler where it draws noise,
    else a move of our own with fresh noise. What a row draws depends on its prompt's
    seed, its particle and the step.

    Attributes:
        ctx: The call.
        solver: The user's scheduler.
        kernel: What moves rows; `None` for `solver`.
        roots: Initial latents of every particle's line, by name.
    """

    ctx: Context
    solver: Solver
    kernel: Kernel | None
    roots: dict[Name, Tensor]

    @classmethod
    def of(
        cls,
        ctx: Context,
        start: Population,
        method: str,
        kernel: str | Kernel,
        eta: float,
        *,
        jumps: bool = False,
    ) -> tuple[Mover, Population]:
        """A mover for `start`, and `start` with the names that its rows have from now on.

        Where the pipeline's own scheduler does not move them, no row is the plain call's.

        Args:
            ctx: The call.
            start: Initial latents.
            method: Who asks, for messages.
            kernel: `"auto"`, `"solver"`, a preset of `Rho`, or a `Kernel`.
            eta: Share of fresh noise in DDIM moves.
            jumps: Rows will begin in the middle, where a solver with history cannot follow.

        Raises:
            UnsupportedSchedulerError: A law that this grid does not have, or that cannot jump.
        """
        solver = ctx.solver(start)
        chosen = _kernel(ctx, solver, method, kernel, eta, jumps)
        self = cls(ctx, solver, chosen, dict(zip(start.ids, start.x.unbind(), strict=True)))
        if chosen is None:
            return self, start
        plain = [row for row, (_, k) in enumerate(start.ids) if k < ctx.images]
        return self, self._rename(start, plain)

    def again(self) -> Mover:
        """The same law from the start, for rows none of which is the plain call's."""
        return replace(self, solver=self.ctx.make_solver(False))

    def adopt(self, drawn: Population) -> None:
        """Further initial latents."""
        self.roots |= dict(zip(drawn.ids, drawn.x.unbind(), strict=True))

    def is_silent(self, steps: Sequence[Step]) -> bool:
        """Whether no noise is known to be drawn at any of the steps: copies would stay equal."""
        return all(is_silent(self.kernel, step) for step in steps)

    def ask(self, population: Population, step: Step) -> Asking[Tensor]:
        """The denoiser's output at a step, of a flow map for the jump that the law makes there."""
        return (yield from self.ctx.denoise(population, aim(self.ctx, self.kernel, step)))

    def step(self, step: Step, population: Population, output: Tensor) -> Asking[Population]:
        """Every row at the step's next point, given the denoiser's output."""
        if self.kernel is None:
            x = self.solver.step(step, population.x, output, population.ids)
            return population.at(x)
        move = yield from finish_move(self.kernel(self.ctx, step, population, output))
        if move.std == 0:
            return population.at(move.mean)
        noise = self.ctx.starts.noise(population.ids, (step.index,), population.x)
        return population.at(Draw(move, move).sample(noise)[0])

    def branch(self, parents: Population, count: int, step: Step) -> tuple[list[int], Population]:
        """`count` children of every row, about to move from `step`: parents' rows, and children.

        The first child keeps its parent's name (and draws what the parent alone would have drawn),
        the others are new particles.
        """
        if count == 1:
            return list(range(len(parents))), parents
        rows = [row for row in range(len(parents)) for _ in range(count)]
        self.solver.gather(rows)
        taken = parents.take(rows)
        children = self._rename(taken, [at for at in range(len(rows)) if at % count])
        self.ctx.tell_descent("select", children.ids, step, taken.ids)
        return rows, children

    def name_children(self, parents: Sequence[Name]) -> tuple[Name, ...]:
        """New particles, each of one parent's line."""
        names = self.ctx.starts.names([prompt for prompt, _ in parents])
        line = {name: self.roots[old] for name, old in zip(names, parents, strict=True)}
        self.roots |= line
        self.ctx.starts.keep(list(line), list(line.values()))
        return names

    def keep(self, population: Population, rows: Sequence[int], step: Step) -> Population:
        """These rows only, with the solver's history; the trace is told."""
        self.ctx.trace.tell_choice(population.ids, rows, step.index)
        self.solver.gather(rows)
        return population.take(rows)

    def _rename(self, population: Population, places: Sequence[int]) -> Population:
        names = list(population.ids)
        for at, name in zip(places, self.name_children([names[at] for at in places]), strict=True):
            names[at] = name
        return Population(population.x, tuple(names))


def look_ahead(
    ctx: Context, population: Population, output: Tensor, here: Step, count: int
) -> Asking[Population]:
    """Clean latents of every row after `count` deterministic DDIM steps to the end.

    The steps are spread evenly over the grid from `here` on, of which the first needs no denoiser
    call: its output is known. One step is the x0 preview.

    Args:
        ctx: Where the denoiser is asked.
        population: Latents at `here`.
        output: The denoiser's output there.
        here: A step of the grid.
        count: Steps, at least 1; fewer where no more are left.
    """
    grid, now = short_grid(ctx.steps[here.index :], count), population
    for number, step in enumerate(grid):
        if number:
            output = yield from ctx.denoise(now, step)
        x0 = step.x0(now.x, output)
        last = number + 1 == len(grid)
        now = now.at(x0 if last else ddim(step, now.x, x0).mean)
    return now


def join_states(
    one: tuple[Population, Tensor], other: tuple[Population, Tensor]
) -> tuple[Population, Tensor]:
    """Two populations with their outputs as one, prompt by prompt."""
    ids = one[0].ids + other[0].ids
    rows = sorted(range(len(ids)), key=lambda row: ids[row][0])
    whole = Population(torch.cat([one[0].x, other[0].x]), ids).take(rows)
    return whole, torch.cat([one[1], other[1]])[rows]


def deal_lines(start: Population, images: int) -> list[Name]:
    """(prompt, image) of every row: dealt out in turn, so that each has one of the plain call's."""
    seen: dict[int, int] = {}
    lines = []
    for prompt, _ in start.ids:
        place = seen[prompt] = seen.get(prompt, -1) + 1
        lines.append((prompt, place % images))
    return lines


def best_of_lines(
    ctx: Context, clean: Population, lines: Sequence[Name], step: Step | None
) -> tuple[list[int], list[float]]:
    """The best row of every line, in the lines' order, and all rewards.

    Ties go to the earlier row.
    """
    scores = ctx.evaluate(clean, step).tolist()
    best: dict[Name, int] = {}
    for row, line in enumerate(lines):
        if line not in best or scores[row] > scores[best[line]]:
            best[line] = row
    return [best[line] for line in sorted(best)], scores


def _kernel(
    ctx: Context, solver: Solver, method: str, kernel: str | Kernel, eta: float, jumps: bool
) -> Kernel | None:
    """The law of the moves; `None` is the pipeline's own solver."""
    jumpy = jumps and solver.remembers
    if kernel == "solver" and jumpy:
        raise UnsupportedSchedulerError(
            f"{method} begins in the middle of the run, and {solver.name} keeps history from "
            "step to step; use kernel='auto', or EulerAncestralDiscreteScheduler"
        )
    chosen = choose_kernel(ctx, solver, method, kernel, eta)
    return own_moves(ctx, eta) if chosen is None and jumpy else chosen
