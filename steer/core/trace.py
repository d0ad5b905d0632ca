"""The events of one call as plain dicts: who descends from whom, rewards, weights, decisions."""

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

    Every event is a dict with `event`, `step` (index into the pipeline's timesteps, or `None`),
    `prompt` (index) and lists aligned with `particle` (ids, unique per prompt within a call).

    Where particles come from:

    - `start`: particles drawn by the pipeline's own function.
    - `select`: which particles go on: `kept` and `dropped` ids, or `ancestors` per particle (copies
      under new ids). `step=None`: before the first step, where particles only get new ids.
    - `branch`: particles that begin at the latents of `ancestors` at that step, -1 for fresh noise.
      `step=None`: initial noises made from those of `ancestors`.

    Scores:

    - `score`: `reward` per particle; `preview` says whether it is of an x0 preview; `parts` maps
      the parts of a composed reward to lists, `judges` may map further reward names to lists. A
      final reward that compares candidates compares all that the call finished for the prompt.
    - `iterate`: `reward` of a short run from the particle's noise. In an optimisation with the
      `iteration`, the `angle` in degrees from its start, and the score of a `monitor`.
    - `lookahead`: `reward` of the short runs that lookahead guidance compares.
    - `weights`: normalised `log_weights`, their effective sample size `ess`, the inverse
      temperature `scale`, and `log_evidence` so far.

    Decisions of the method:

    - `guide`: the `shift` of the clean prediction as a share of its norm, and the particle that it
      goes `towards`; or the `gap` to the prediction of the `best` one, before the shift.
    - `grid`: `steps` whose previews are recorded, with their `noise` shares.
    - `round`: a gate's round: `best`, `threshold`, `accepted`.
    - `budget`: the search ended after `spent` rows, for a limit of `compute` plain calls.
    - `stop`: the caller stopped the search after `spent` rows; of the chosen, `unfinished` names
      those that did not go all the way.
    - `memory`: out of memory; the call began again with `lane_width`, after `rows` denoiser rows.
    - `final`: `chosen` ids, best first.
    - `departure`: `kl` from the plain sampler, and `noise_norm` per chosen one, as in `Report`.

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
        """One row per prompt; of a list with a value per name each prompt's row gets its part."""
        for prompt, own in rows_by_prompt(names).items():
            mine = {
                key: [value[row] for row in own] if isinstance(value, list | tuple) else value
                for key, value in values.items()
            }
            particles = [names[row][1] for row in own]
            self.log(event, step=step, prompt=prompt, particle=particles, **mine)

    def tell_choice(self, names: Sequence[Name], kept: Sequence[int], step: int) -> None:
        """Say which particles of every prompt go on and which are dropped, by row."""
        for prompt, own in rows_by_prompt(names).items():
            going = [names[row][1] for row in own if row in kept]
            ended = [names[row][1] for row in own if row not in kept]
            self.log("select", step=step, prompt=prompt, kept=going, dropped=ended)

    def of(self, event: str, prompt: int | None = None) -> list[dict[str, Any]]:
        """The rows of one kind, of one prompt if given."""
        return [
            row
            for row in self.events
            if row["event"] == event and (prompt is None or row["prompt"] == prompt)
        ]
