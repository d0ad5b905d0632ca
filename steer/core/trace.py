"""What happened during a call, as a list of plain dict rows: the genealogy and the rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from steer.core.rows import rows_by_prompt
from steer.core.types import Name


@dataclass
class Trace:
    """The events of one call, in order, JSON-ready.

    Every event is a dict with `event`, `step` (index into the pipeline's grid, `None` outside),
    `prompt` (index) and lists aligned with `particle` (ids, unique per prompt within a call).

    Where particles come from:

    - `start`: particles drawn by the pipeline's own function.
    - `select`: who goes on: `kept` and `dropped` ids, or `ancestors` per particle (copies, new
      names). `step=None`: before the first step, where particles only change their names.
    - `branch`: particles that begin where `ancestors` stood at that step, -1 for fresh noise.
      `step=None`: initial noises made from those of `ancestors`.

    What was thought of them:

    - `score`: `reward` per particle; `preview` says whether an x0 preview was judged; `parts` maps
      the parts of a composed reward to lists, `judges` may map further reward names to lists. A
      final reward that compares candidates is among all that the call finished for the prompt.
    - `iterate`: `reward` after a short run from the particle's noise (of a search), or from its
      noise of iteration `iteration` (of an optimisation), then with the `angle` in degrees from
      its start, and what a `monitor` said.
    - `lookahead`: `reward` of the short runs that guidance looks at.
    - `weights`: normalised `log_weights`, their effective sample size `ess`, the inverse
      temperature `scale`, and `log_evidence` so far.

    What was done:

    - `guide`: the `shift` of the clean prediction as a share of its length, and whom it went
      `towards`; or the `gap` to the `best` one's, before it was closed in part.
    - `grid`: `steps` whose previews are watched, with their `noise` shares.
    - `round`: a gate's round: `best`, `threshold`, `accepted`.
    - `budget`: the search was closed after `spent` rows, for a limit of `compute` plain calls.
    - `memory`: memory was short; the call began again with `width`, after `rows` denoiser rows.
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

    def tell(
        self, event: str, names: Sequence[Name], *, step: int | None = None, **values: Any
    ) -> None:
        """One row per prompt: lists with a value per name are dealt out, the rest is repeated."""
        for prompt, own in rows_by_prompt(names).items():
            mine = {
                key: [value[row] for row in own] if isinstance(value, list | tuple) else value
                for key, value in values.items()
            }
            particles = [names[row][1] for row in own]
            self.log(event, step=step, prompt=prompt, particle=particles, **mine)

    def of(self, event: str, prompt: int | None = None) -> list[dict[str, Any]]:
        """The rows of one kind, of one prompt if given."""
        return [
            row
            for row in self.events
            if row["event"] == event and (prompt is None or row["prompt"] == prompt)
        ]
