"""Search methods: each file reads like its paper's algorithm box."""

from __future__ import annotations

from steer.methods.default import for_compute
from steer.methods.guidance.best_of_n import BestOfNGuidance
from steer.methods.guidance.guide import Guide
from steer.methods.guidance.lookahead import LookaheadGuidance
from steer.methods.noise.ascent import ReNO, Sphere, ZeroOrder
from steer.methods.noise.optimization import NoiseOptimization
from steer.methods.noise.search import NoiseSearch
from steer.methods.particles.beam import Beam
from steer.methods.particles.blockwise import Blockwise
from steer.methods.particles.gradient_proposal import GradientProposal
from steer.methods.particles.smc import SMC
from steer.methods.particles.tree import Tree
from steer.methods.selection.best_of_n import BestOfN
from steer.methods.selection.budget import Budget
from steer.methods.selection.gate import Gate
from steer.methods.selection.prune import Prune
from steer.methods.selection.then import Then
from steer.search.method import Method


__all__ = [
    "Beam",
    "BestOfN",
    "BestOfNGuidance",
    "Blockwise",
    "Budget",
    "Gate",
    "GradientProposal",
    "Guide",
    "LookaheadGuidance",
    "Method",
    "NoiseOptimization",
    "NoiseSearch",
    "Prune",
    "ReNO",
    "SMC",
    "Sphere",
    "Then",
    "Tree",
    "ZeroOrder",
    "for_compute",
]
