"""Who descends from whom, read off a trace, and how particles are called where people read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


MADE = 100_000
"""`steer.search.starts.FIRST_MADE`, here without torch, so that pages are built quickly."""


@dataclass
class Descent:
    """The family tree of one prompt's particles.

    Attributes:
        parents: By particle, its parent and the step at which it left that one's path; the step is
            `None` where it began from (or was made from) its parent's initial noise.
    """

    parents: dict[int, tuple[int, int | None]] = field(default_factory=dict)

    def read(self, event: Mapping[str, Any]) -> bool:
        """Take in a `select` or `branch` event; whether noises made from others begin here."""
        ancestors = event.get("ancestors")
        if event["event"] not in ("select", "branch") or ancestors is None:
            return False
        pairs = list(zip(event["particle"], ancestors, strict=True))
        born = {child: parent for child, parent in pairs if parent not in (child, -1)}
        self.parents |= {child: (parent, event.get("step")) for child, parent in born.items()}
        return event["event"] == "branch" and event.get("step") is None and bool(born)

    def parent(self, particle: int) -> tuple[int | None, int | None]:
        """A particle's parent and where it left it; `(None, None)` for one that was drawn."""
        return self.parents.get(particle, (None, None))

    def line(self, particle: int) -> list[tuple[int, int | None]]:
        """The particle and its ancestors, each with the step at which it left the next one."""
        found: list[tuple[int, int | None]] = []
        at: int | None = particle
        while at is not None and at not in (name for name, _ in found):
            parent, since = self.parents.get(at, (None, None))
            found.append((at, since))
            at = parent
        return found

    def words(self, particle: int) -> str:
        """The line as text: `made 3 < #4 at step 8 < plain`."""
        line = self.line(particle)
        text = title(particle)
        for (_, since), (ancestor, _) in pairwise(line):
            text += f" < {title(ancestor)}" + ("" if since is None else f" at step {since + 1}")
        return text


def title(particle: int) -> str:
    """A particle's name on a page: the plain call's, one drawn, or one that the method made."""
    if particle == 0:
        return "plain"
    return f"#{particle}" if particle < MADE else f"made {particle - MADE + 1}"
