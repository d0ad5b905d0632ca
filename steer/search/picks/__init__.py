"""Which of a prompt's candidates are returned: the best, or a rule that is harder to fool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer.core.lazy import lazy_names


if TYPE_CHECKING:
    from steer.search.picks.base import Candidates as Candidates, Pick as Pick
    from steer.search.picks.diverse import Diverse as Diverse
    from steer.search.picks.draws import Pessimistic as Pessimistic, SoftBest as SoftBest
    from steer.search.picks.ranks import Best as Best, Quantile as Quantile

_MODULES = {
    "Best": "steer.search.picks.ranks",
    "Candidates": "steer.search.picks.base",
    "Diverse": "steer.search.picks.diverse",
    "Pessimistic": "steer.search.picks.draws",
    "Pick": "steer.search.picks.base",
    "Quantile": "steer.search.picks.ranks",
    "SoftBest": "steer.search.picks.draws",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
