"""Search methods: each file reads like its paper's algorithm box."""

from __future__ import annotations

from steer.methods.best_of_n import BestOfN
from steer.methods.default import for_compute
from steer.methods.gate import Gate
from steer.methods.prune import Prune


__all__ = ["BestOfN", "Gate", "Prune", "for_compute"]
