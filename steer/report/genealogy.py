"""Who was drawn, judged, dropped and chosen: a trace's events as stages and as lines to plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


State = Literal["kept", "dropped", "chosen"]
FINAL = -1
"""The step under which a trace keeps a particle's finished image."""


@dataclass
class Cell:
    """One particle at one stage; `key` is its `(particle, step)` among the preview images."""

    particle: int
    reward: float | None
    state: State
    key: tuple[int, int]
    parent: int | None = None
    image: str | None = None


@dataclass
class Stage:
    """One judging of the population: previews at a grid step, or the finished images.

    Attributes:
        step: Index into the pipeline's grid; None for finished images.
        at: How much of the way lies behind, 0 to 1.
        cells: By particle id.
    """

    step: int | None
    at: float
    cells: dict[int, Cell]

    @property
    def kept(self) -> int:
        """How many went on from here."""
        return sum(cell.state != "dropped" for cell in self.cells.values())


@dataclass
class Block:
    """One population from its start to its end; a gate's rounds are one block each.

    Attributes:
        stages: In order of time.
        columns: Particle ids, the longest-lived and best first.
        parents: Of particles that are copies of others, by particle id.
        best, threshold, accepted: A gate's verdict on this round, where there was one.
    """

    stages: list[Stage] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    best: float | None = None
    threshold: float | None = None
    accepted: bool | None = None


@dataclass(frozen=True)
class Line:
    """One particle's rewards over the way, as `(at, reward)` points."""

    particle: int
    points: tuple[tuple[float, float], ...]
    state: State


def blocks(events: Iterable[Mapping[str, Any]], prompt: int, steps: int) -> list[Block]:
    """The populations of one prompt, in order, from the events of a `Trace`."""
    found: list[Block] = []
    chosen: list[int] = []
    for event in events:
        if event.get("prompt") != prompt:
            continue
        kind = event["event"]
        if kind == "start" or not found:
            found.append(Block())
        if kind == "score":
            _judge(found[-1], event, steps)
        elif kind == "select" and found[-1].stages:
            _select(found[-1], event)
        elif kind == "round":
            found[-1].best, found[-1].threshold = event.get("best"), event.get("threshold")
            found[-1].accepted = event.get("accepted")
        elif kind == "final":
            chosen = list(event.get("chosen", ()))
    found = [block for block in found if block.stages]
    for block in found:
        _settle(block, chosen)
    return found


def lines(block: Block) -> list[Line]:
    """Every particle of a block as a line, the chosen last so that they are drawn on top."""
    found = []
    for particle in block.columns:
        cells = [(s.at, s.cells[particle]) for s in block.stages if particle in s.cells]
        points = tuple((at, c.reward) for at, c in cells if c.reward is not None)
        if points:
            found.append(Line(particle, points, cells[-1][1].state))
    order = {"dropped": 0, "kept": 1, "chosen": 2}
    return sorted(found, key=lambda line: order[line.state])


def _judge(block: Block, event: Mapping[str, Any], steps: int) -> None:
    """Add a stage; a second reward of the same stage only fills what is missing."""
    step = event.get("step") if event.get("preview") else None
    at = 1.0 if step is None else min((step + 1) / max(steps, 1), 1.0)
    key = FINAL if step is None else step
    rewards = event.get("reward") or [None] * len(event["particle"])
    seen = {particle for stage in block.stages for particle in stage.cells}
    cells = {
        particle: Cell(particle, reward, "kept", (particle, key))
        for particle, reward in zip(event["particle"], rewards, strict=True)
    }
    for particle in cells.keys() - seen:  # a copy's parent is told where the copy is first seen
        cells[particle].parent = block.parents.get(particle)
    last = block.stages[-1] if block.stages else None
    if last is not None and last.step == step:
        last.cells.update(cells)
    else:
        block.stages.append(Stage(step, at, cells))


def _select(block: Block, event: Mapping[str, Any]) -> None:
    stage = block.stages[-1]
    for particle in event.get("dropped") or ():
        if particle in stage.cells:
            stage.cells[particle].state = "dropped"
    ancestors = event.get("ancestors")
    if ancestors is not None:
        for particle in set(stage.cells) - set(ancestors):
            stage.cells[particle].state = "dropped"
        born = [(k, p) for k, p in zip(event["particle"], ancestors, strict=True) if k != p]
        block.parents.update(born)
        for child, parent in born:
            if child in stage.cells:
                stage.cells[child].parent = parent


def _settle(block: Block, chosen: list[int]) -> None:
    """Mark the chosen, drop the others of the last stage, and order the columns."""
    last = block.stages[-1]
    for cell in last.cells.values():
        cell.state = "chosen" if cell.particle in chosen else "dropped"
    fate: dict[int, tuple[int, int, float]] = {}
    for index, stage in enumerate(block.stages):
        for cell in stage.cells.values():
            rank = chosen.index(cell.particle) if cell.particle in chosen else len(chosen)
            reward = float("-inf") if cell.reward is None else cell.reward
            fate[cell.particle] = (-index, rank, -reward)
    block.columns = sorted(fate, key=lambda particle: fate[particle])
