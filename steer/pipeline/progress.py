"""The pipeline's own progress bar over a whole search: best reward, ESS, and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steer.core.ledger import Ledger
from steer.core.trace import Trace
from steer.core.types import Search


_JUDGED = ("score", "iterate", "lookahead")


@dataclass(eq=False)
class Progress:
    """What the bar shows, read from the books after every denoiser call.

    - `reward`: the best that any particle had so far, previews and short runs included;
    - `ESS`: effective sample size of the latest weights and the population, of the prompt where it
      is lowest; only for methods that weight;
    - `left`: the share of the method's cost (of a `Budget`: of its compute) not spent yet.

    Attributes:
        ledger, trace: The books of the call.
        planned: Denoiser-row equivalents that all prompts together may cost.
    """

    ledger: Ledger
    trace: Trace
    planned: float = 0.0
    _bar: Any = None
    _read: int = 0
    _best: float | None = None
    _ess: Mapping[int, tuple[float, int]] | None = None
    _at: int | None = None

    def bar(self, pipe: Any, **options: Any) -> Any:
        """The pipeline's own bar; the numbers go on it."""
        self._bar = type(pipe).progress_bar(pipe, **options)
        return self._bar

    def follow(self, search: Search) -> Search:
        """The search itself; the bar is told after every answer what came of it."""
        try:
            query = next(search)
            while True:
                answer = yield query
                query = search.send(answer)
                self.show()
        except StopIteration as stop:
            self.show()
            return stop.value
        finally:
            search.close()

    def show(self) -> None:
        """Put the numbers on the bar, if there is one to be seen."""
        if not hasattr(self._bar, "set_postfix") or getattr(self._bar, "disable", False):
            return
        self._catch_up()
        shown = {} if self._best is None else {"reward": f"{self._best:.4g}"}
        if self._ess:
            size, of = min(self._ess.values())
            shown["ESS"] = f"{size:.1f}/{of}"
        if self.planned:
            left = 1 - self.ledger.equivalent_rows / self.planned
            shown["left"] = f"{max(left, 0):.0%}"
        self._bar.set_postfix(shown, refresh=False)

    def _catch_up(self) -> None:
        """Read what the trace has new."""
        for event in self.trace.events[self._read :]:
            if event["event"] in _JUDGED:
                best = max(event["reward"], default=None)
                if best is not None:
                    self._best = best if self._best is None else max(self._best, best)
            elif event["event"] == "weights":
                newer = {} if event["step"] != self._at else dict(self._ess or {})
                self._at = event["step"]
                newer[event["prompt"]] = (event["ess"], len(event["particle"]))
                self._ess = newer
        self._read = len(self.trace.events)
