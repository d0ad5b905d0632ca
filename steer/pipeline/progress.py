"""How far a search is, for its bar and its caller: best reward, ESS, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steer.core.ledger import Ledger
from steer.core.trace import Trace
from steer.core.types import Population, Search
from steer.pipeline.so_far import SoFar


_JUDGED = ("score", "iterate", "lookahead")


@dataclass(eq=False)
class Progress:
    """How far a call is, read from the books after every denoiser call; what its bar shows.

    - `reward`: the best that any particle had so far, previews and short runs included;
    - `ESS`: effective sample size of the latest weights and the population, of the prompt where it
      is lowest; only for methods that weight;
    - `left`: the share of the method's cost (of a `Budget`: of its compute) not spent yet.

    Attributes:
        ledger, trace: The books of the call.
        planned: Denoiser-row equivalents that all prompts together may cost.
        on_step: Called with this after every denoiser call; it may `stop()` the search.
        stopping: Whether that was asked for.
        stopped: Whether the search ended for it.
    """

    ledger: Ledger
    trace: Trace
    planned: float = 0.0
    on_step: Callable[[Progress], None] | None = None
    stopping: bool = False
    stopped: bool = False
    _bar: Any = None
    _read: int = 0
    _best: float | None = None
    _ess: Mapping[int, tuple[float, int]] | None = None
    _at: int | None = None

    def bar(self, pipe: Any, **options: Any) -> Any:
        """The pipeline's own bar; the numbers go on it."""
        self._bar = type(pipe).progress_bar(pipe, **options)
        return self._bar

    @property
    def reward(self) -> float | None:
        """The best reward so far, previews and short runs included; None before the first."""
        self._catch_up()
        return self._best

    @property
    def left(self) -> float:
        """The share of the method's cost that is not spent yet, 0 to 1."""
        spent = self.ledger.equivalent_rows / self.planned if self.planned else 0.0
        return max(1 - spent, 0.0)

    def stop(self) -> None:
        """End the search, from any thread, and return the best so far.

        That is the best finished image; where none is finished, what the best preview predicts of
        one; and before any preview, what the denoiser predicts of the plain image. It happens after
        a denoiser call after which every prompt has one of these.
        """
        self.stopping = True

    def follow(self, search: Search, so_far: SoFar) -> Search:
        """The search itself, up to a stop; bar and caller are told after every answer what came of
        it."""
        try:
            query = next(search)
            while True:
                answer = yield query
                so_far.latest = query, answer
                query = search.send(answer)
                self.show()
                if self.stopping and (winners := so_far.winners()) is not None:
                    self._end(so_far, winners)
                    return winners
        except StopIteration as stop:
            self.show()
            return stop.value
        finally:
            search.close()

    def _end(self, so_far: SoFar, winners: Population) -> None:
        """Note that the search was stopped, and which of the winners are not finished."""
        self.stopped = True
        unfinished = [list(name) for name in so_far.unfinished(winners)]
        self.trace.log("stop", spent=self.ledger.denoiser_rows, unfinished=unfinished)

    def show(self) -> None:
        """Tell the caller, and put the numbers on the bar, if there is one to be seen."""
        if self.on_step is not None:
            self.on_step(self)
        if not hasattr(self._bar, "set_postfix") or getattr(self._bar, "disable", False):
            return
        self._catch_up()
        shown = {} if self._best is None else {"reward": f"{self._best:.4g}"}
        if self._ess:
            size, of = min(self._ess.values())
            shown["ESS"] = f"{size:.1f}/{of}"
        if self.planned:
            shown["left"] = f"{self.left:.0%}"
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
