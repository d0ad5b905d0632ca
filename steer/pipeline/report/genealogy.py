"""Who was drawn, judged, dropped and chosen: a trace's events as stages and as lines to plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steer.pipeline.report.descent import Descent


State = Literal["kept", "dropped", "chosen"]
FINAL = -1
"""The step under which a trace keeps a particle's finished image."""


@dataclass
class Cell:
    """One particle at one stage.

    Attributes:
        key: Its `(particle, step)` among the preview images; `None` where there are none.
        parent, since: Whom it descends from, told where it is first seen, and the step at which it
            left that one's path; `None` for the initial noise.
    """

    particle: int
    reward: float | None
    state: State
    key: tuple[int, int] | None
    parent: int | None = None
    since: int | None = None
    image: str | None = None


@dataclass
class Stage:
    """One judging of the population: previews at a grid step, short runs, or finished images.

    Attributes:
        step: Index into the pipeline's grid; None outside it.
        at: How much of the way lies behind, 0 to 1; of a climb, of its iterations.
        cells: By particle id.
        kind: `"preview"`, `"short"` (short runs), `"climb"` (an iteration), or `"final"`.
        label: As it is shown.
        ess: Effective sample size of the weights, where there are any.
    """

    step: int | None
    at: float
    cells: dict[int, Cell]
    kind: str = "preview"
    label: str = ""
    ess: float | None = None

    @property
    def kept(self) -> int:
        """How many went on from here."""
        return sum(cell.state != "dropped" for cell in self.cells.values())

    @property
    def verdict(self) -> str:
        """How many were judged and what became of them."""
        chosen = sum(cell.state == "chosen" for cell in self.cells.values())
        words = [f"{len(self.cells)} judged"]
        if chosen or self.kept < len(self.cells):
            words.append(f"{chosen} chosen" if chosen else f"{self.kept} kept")
        if self.ess is not None:
            words.append(f"ESS {self.ess:.1f}")
        return ", ".join(words)


@dataclass
class Block:
    """One population from its start to its end: a gate's round, a round of noises, or the call.

    Attributes:
        stages: In order of time.
        columns: Particle ids, the longest-lived and best first.
        descent: Who descends from whom, in all blocks of the prompt.
        best, threshold, accepted: A gate's verdict on this round, where there was one.
    """

    stages: list[Stage] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    descent: Descent = field(default_factory=Descent)
    best: float | None = None
    threshold: float | None = None
    accepted: bool | None = None

    @property
    def climbs(self) -> bool:
        """Whether its noises were improved by iterations."""
        return any(stage.kind == "climb" for stage in self.stages)


@dataclass(frozen=True)
class Line:
    """One particle's rewards over the way, as `(at, reward)` points."""

    particle: int
    points: tuple[tuple[float, float], ...]
    state: State


def blocks(events: Iterable[Mapping[str, Any]], prompt: int, steps: int) -> list[Block]:
    """The populations of one prompt, in order, from the events of a `Trace`.

    Args:
        events: Those of `Trace.events`; other prompts' are passed over.
        prompt: Index of the prompt within its call.
        steps: Denoiser calls of a plain call.
    """
    found, descent, chosen = [Block()], Descent(), []
    for event in events:
        if event.get("prompt") != prompt:
            continue
        kind = event["event"]
        if descent.read(event) or kind == "start":
            found.append(Block())
        block = found[-1]
        if kind in ("score", "iterate", "lookahead"):
            _judge(block, event, steps, descent)
        elif kind == "select":
            _select(block, event)
        elif kind == "weights":
            _weigh(block, event)
        elif kind == "round":
            block.best, block.threshold = event.get("best"), event.get("threshold")
            block.accepted = event.get("accepted")
        elif kind == "final":
            chosen = list(event.get("chosen", ()))
    found = [block for block in found if block.stages]
    later: set[int] = set()
    for block in reversed(found):
        block.descent = descent
        _settle(block, chosen, later)
        later |= {particle for stage in block.stages for particle in stage.cells}
    return found


def lines(block: Block) -> list[Line]:
    """Every particle of a block as a line, the chosen last so that they are drawn on top.

    A line that descends from another begins at that one's last point before it. Of a climb only
    the iterations are on it.
    """
    stages = [s for s in block.stages if not block.climbs or s.kind == "climb"]
    points: dict[int, list[tuple[float, float]]] = {}
    states: dict[int, State] = {}
    for stage in stages:
        for particle, cell in stage.cells.items():
            if cell.reward is not None:
                points.setdefault(particle, []).append((stage.at, cell.reward))
            states[particle] = cell.state
    found = []
    for particle in block.columns:
        own = points.get(particle)
        if own:
            before = _point_before(block.descent, points, particle, own[0][0])
            found.append(Line(particle, (*before, *own), states[particle]))
    order = {"dropped": 0, "kept": 1, "chosen": 2}
    return sorted(found, key=lambda line: order[line.state])


def lineage(events: Iterable[Mapping[str, Any]], prompt: int) -> tuple[str, ...]:
    """Where each of a prompt's chosen particles comes from, in words; those that were drawn not."""
    descent, chosen = Descent(), []
    for event in events:
        if event.get("prompt") == prompt:
            descent.read(event)
            chosen = event["chosen"] if event["event"] == "final" else chosen
    return tuple(f"Chosen: {descent.words(k)}" for k in chosen if k in descent.parents)


def notes(events: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """What a reader should know of a call: a budget or a stop that ended it, memory that was
    short."""
    found = []
    for event in events:
        if event["event"] == "budget":
            limit, spent = event["compute"], event["spent"]
            found.append(f"Ended by its budget of {limit:g} plain calls, after {spent} rows.")
        if event["event"] == "stop":
            what = ": what is shown is what an unfinished particle was becoming"
            more = what if event["unfinished"] else "; the best finished image is shown"
            found.append(f"Stopped after {event['spent']} rows{more}.")
        if event["event"] == "memory":
            width, rows = event["lane_width"], event["rows"]
            found.append(f"Memory was short: begun again at lane width {width}, after {rows} rows.")
        if event["event"] == "flagged":
            names = ", ".join(map(str, event["particle"]))
            found.append(f"Prompt {event['prompt']}: the safety checker flagged particle {names}.")
        if event["event"] == "nan":
            names = ", ".join(map(str, event["particle"]))
            what = "the image" if event["step"] is None else f"at step {event['step']} the preview"
            found.append(f"Prompt {event['prompt']}: {what} of particle {names} has NaN pixels.")
    return tuple(found)


def _point_before(
    descent: Descent, points: Mapping[int, list[tuple[float, float]]], particle: int, first: float
) -> list[tuple[float, float]]:
    """Where the line of a particle leaves its ancestor's."""
    for ancestor, _ in descent.line(particle)[1:]:
        before = [point for point in points.get(ancestor, ()) if point[0] < first]
        if before:
            return [before[-1]]
    return []


def _stage(event: Mapping[str, Any], steps: int) -> Stage:
    """The stage that an event belongs to, empty."""
    number = event.get("iteration")
    if event["event"] == "iterate" and number is not None:
        return Stage(None, 1.0, {}, "climb", f"iteration {number + 1}")
    if event["event"] in ("iterate", "lookahead"):
        return Stage(None, 0.0, {}, "short", "short runs")
    step = event.get("step") if event.get("preview") else None
    if step is None:
        return Stage(None, 1.0, {}, "final", "finished")
    at = min((step + 1) / max(steps, 1), 1.0)
    return Stage(step, at, {}, "preview", f"step {step + 1} of {steps}")


def _judge(block: Block, event: Mapping[str, Any], steps: int, descent: Descent) -> None:
    """Add to the stage: a lane's particles, or a second reward, which replaces the first."""
    fresh = _stage(event, steps)
    stage = next((s for s in block.stages if (s.kind, s.label) == (fresh.kind, fresh.label)), fresh)
    if stage is fresh:
        block.stages.append(stage)
    seen = {particle for other in block.stages for particle in other.cells}
    at = {"preview": fresh.step, "final": FINAL}.get(fresh.kind)
    rewards = event.get("reward") or [None] * len(event["particle"])
    for particle, reward in zip(event["particle"], rewards, strict=True):
        cell = Cell(particle, reward, "kept", None if at is None else (particle, at))
        if particle not in seen:  # a copy's parent is told where the copy is first seen
            cell.parent, cell.since = descent.parent(particle)
        stage.cells[particle] = cell


def _select(block: Block, event: Mapping[str, Any]) -> None:
    if not block.stages:
        return
    stage = block.stages[-1]
    for particle in event.get("dropped") or ():
        if particle in stage.cells:
            stage.cells[particle].state = "dropped"
    ancestors = event.get("ancestors")
    if ancestors is not None:
        for particle in set(stage.cells) - set(ancestors):
            stage.cells[particle].state = "dropped"
        for child, parent in zip(event["particle"], ancestors, strict=True):
            if child in stage.cells and child != parent:
                stage.cells[child].parent, stage.cells[child].since = parent, event.get("step")


def _weigh(block: Block, event: Mapping[str, Any]) -> None:
    kind = "final" if event.get("step") is None else "preview"
    for stage in reversed(block.stages):
        if (stage.kind, stage.step) == (kind, event.get("step")):
            stage.ess = event.get("ess")
            return


def _settle(block: Block, chosen: list[int], later: set[int]) -> None:
    """Mark the chosen that no later block has, drop those of the last stage that led to none, and
    order the columns."""
    last = next((stage for stage in block.stages if stage.kind == "final"), block.stages[-1])
    lineage = {particle for winner in chosen for particle, _ in block.descent.line(winner)}
    for cell in last.cells.values():
        cell.state = "kept" if cell.particle in lineage else "dropped"
        if cell.particle in chosen and cell.particle not in later:
            cell.state = "chosen"
    climb = [stage for stage in block.stages if stage.kind == "climb"]
    for index, stage in enumerate(climb):
        stage.at = (index + 1) / len(climb)
    fate: dict[int, tuple[int, int, float]] = {}
    for index, stage in enumerate(block.stages):
        for cell in stage.cells.values():
            rank = chosen.index(cell.particle) if cell.particle in chosen else len(chosen)
            reward = float("-inf") if cell.reward is None else cell.reward
            fate[cell.particle] = (-index, rank, -reward)
    block.columns = sorted(fate, key=lambda particle: fate[particle])
