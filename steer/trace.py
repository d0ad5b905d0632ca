"""What happened during a call, as a list of plain dict rows: the genealogy and the rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Trace:
    """The events of one call, in order, JSON-ready.

    Every event is a dict with `event`, `step` (index into the pipeline's grid, `None` outside),
    `prompt` (index) and lists aligned with `particle` (ids, unique per prompt within a call):

    - `start`: particles drawn.
    - `score`: `reward` per particle; `preview` says whether an x0 preview was judged; `parts` maps
      the parts of a composed reward to lists, `judges` may map further reward names to lists. A
      final reward that compares candidates is among all that the call finished for the prompt.
    - `select`: `kept` and `dropped` ids (pruning), or `ancestors` per new particle (resampling).
    - `branch`: a tree's rollouts: `ancestors` whose states they begin from, -1 for fresh noise.
    - `round`: a gate's round: `best`, `threshold`, `accepted`.
    - `grid`: `steps` whose previews are watched, with their `noise` shares.
    - `final`: `chosen` ids, best first.

    Attributes:
        events: The rows.
        images: Small uint8 previews `(h, w, 3)` by `(prompt, particle, step)`, when kept; the
            final image of a particle has step -1.
        keep_images: Whether previews are stored.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    images: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    keep_images: bool = False

    def log(self, event: str, *, step: int | None = None, prompt: int = 0, **values: Any) -> None:
        """Append one row; tensors become lists."""
        plain = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in values.items()}
        self.events.append({"event": event, "step": step, "prompt": prompt, **plain})

    def of(self, event: str, prompt: int | None = None) -> list[dict[str, Any]]:
        """The rows of one kind, of one prompt if given."""
        return [
            row
            for row in self.events
            if row["event"] == event and (prompt is None or row["prompt"] == prompt)
        ]
