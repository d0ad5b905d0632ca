"""What a run will cost, in words: plain calls, denoiser rows, and seconds once one was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steer.jobs.effort import effort
from steer.pipeline.estimate import Estimate, estimate
from steer.pipeline.guided import Guided
from steer.pipeline.report.page import seconds


@dataclass(frozen=True)
class Pace:
    """How fast a run was.

    Attributes:
        row: Seconds of a denoiser row.
        picture: Seconds of an image that is decoded and scored.
    """

    row: float
    picture: float

    @classmethod
    def of(cls, ledger: Mapping[str, Any]) -> Pace | None:
        """By the ledger of a run, as `run.json` has it; `None` where it counted nothing."""
        spent = ledger["seconds"]
        pictures = sum(spent.get(part, 0.0) for part in ("decode", "preview", "reward"))
        rows, scored = ledger["denoiser_rows"], ledger["reward_calls"]
        if not rows:
            return None
        return cls((spent["total"] - pictures) / rows, pictures / max(scored, 1))

    def seconds(self, cost: Estimate) -> float:
        """How long a call of this cost takes."""
        return self.row * cost.work.rows + self.picture * cost.work.scores

    def plain(self, steps: int) -> float:
        """How long a plain call takes."""
        return self.row * steps


def predicted(guided: Guided, method: str | None, compute: float, steps: int) -> Estimate:
    """What a run will cost; bad values raise ValueError."""
    given = effort(method, compute)
    return estimate(guided, steps, **given)


def in_words(cost: Estimate, pace: Pace | None) -> str:
    """One line for the page, the plain picture beside it told apart."""
    words = f"**{cost.calls:.1f} plain calls**, {cost.work.rows} denoiser rows"
    if pace is None:
        time = "seconds are known after the first picture"
    else:
        plain = pace.plain(cost.steps)
        time = (
            f"about **{seconds(pace.seconds(cost))}**, and {seconds(plain)} for the plain picture"
        )
    return f"{words}; {time}.\n\n`{cost.method!r}`"
