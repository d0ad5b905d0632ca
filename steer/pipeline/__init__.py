"""The face of the library: `guided(pipe, reward)`, and what a call needs around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer.core.lazy import lazy_names


if TYPE_CHECKING:
    from steer.pipeline.lookahead_runs import lookaheads as lookaheads
    from steer.pipeline.pilot_runs import calibrate_gate as calibrate_gate, pilots as pilots
    from steer.pipeline.scale_runs import fit_scales as fit_scales
    from steer.search.lookahead import LookaheadSet as LookaheadSet

_MODULES = {
    "calibrate_gate": "steer.pipeline.pilot_runs",
    "fit_scales": "steer.pipeline.scale_runs",
    "lookaheads": "steer.pipeline.lookahead_runs",
    "LookaheadSet": "steer.search.lookahead",
    "pilots": "steer.pipeline.pilot_runs",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
