"""What draws a comparison's images: with everything loaded once, in any process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from steer.jobs.compare.arms import Painter, Studio
from steer.jobs.compare.config import Comparison
from steer.jobs.compare.scoring import reported_rewards
from steer.jobs.compare.store import Unit
from steer.jobs.device import usable_device
from steer.jobs.spread.worker import Worker
from steer.rewards.parts import check_prompts


@dataclass(frozen=True)
class Call:
    """One call of an arm's pipeline: a fixed run of its images, with their prompts."""

    units: tuple[Unit, ...]
    texts: tuple[str, ...]

    @property
    def arm(self) -> str:
        """The arm's name."""
        return self.units[0].arm

    def __str__(self) -> str:
        first = self.units[0]
        return f"arm {self.arm!r}, prompt {first.prompt} ({self.texts[0]!r}), seed {first.seed}"


Drawn = list[tuple[Any, Any]]
"""A call's images, and a record of each."""


class Artist(Worker[Call, Drawn]):
    """Draws calls; pipeline and reward are loaded with it, every arm with its first call.

    Args:
        comparison: What is compared.
        texts: All prompts, which the reward may refuse.
        pipe: The pipeline; loaded when left out.

    Raises:
        SteerError, ValueError: What cannot be loaded; see `Studio`.
    """

    def __init__(self, comparison: Comparison, texts: Sequence[str], pipe: Any = None) -> None:
        self.studio = Studio(comparison, usable_device(comparison.device), pipe)
        reported_rewards(comparison, self.studio.reward)
        check_prompts(self.studio.reward, texts)
        self._opened = ExitStack()
        self._painter: Painter | None = None

    def work(self, unit: Call) -> Drawn:
        """Draw one call."""
        return self._painter_of(unit.arm).draw(unit.units, unit.texts)

    def close(self) -> None:
        """Put the pipeline's own scheduler back."""
        self._opened.close()
        self._painter = None

    def _painter_of(self, name: str) -> Painter:
        if self._painter is None or self._painter.arm.name != name:
            self.close()
            arms = self.studio.comparison.arms
            place = next(k for k, arm in enumerate(arms) if arm.name == name)
            self.studio.keep_only(arms[place:])
            self._painter = self._opened.enter_context(self.studio.arm(arms[place]))
        return self._painter
