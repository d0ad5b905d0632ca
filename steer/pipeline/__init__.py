"""The face of the library: `guided(pipe, reward)`, and what a call needs around it."""

from __future__ import annotations

from steer.pipeline.lookahead_runs import lookaheads
from steer.pipeline.pilot_runs import calibrate, pilots
from steer.search.lookahead import LookaheadSet


__all__ = ["LookaheadSet", "calibrate", "lookaheads", "pilots"]
