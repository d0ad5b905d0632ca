"""Search methods: each file reads like its paper's algorithm box."""

from __future__ import annotations

from steer.methods.beam import Beam
from steer.methods.best_of_n import BestOfN
from steer.methods.best_of_n_guidance import BestOfNGuidance
from steer.methods.blockwise import Blockwise
from steer.methods.budget import Budget
from steer.methods.default import for_compute
from steer.methods.draft import Draft
from steer.methods.gate import Gate
from steer.methods.gradient_guidance import GradientGuidance
from steer.methods.gradient_proposal import GradientProposal
from steer.methods.guide import Guide
from steer.methods.lookahead_guidance import LookaheadGuidance
from steer.methods.noise_optimization import NoiseOptimization
from steer.methods.noise_search import NoiseSearch
from steer.methods.previews import Previews
from steer.methods.prune import Prune
from steer.methods.smc import SMC
from steer.methods.step_gate import StepGate
from steer.methods.then import Then
from steer.methods.tree import Tree


__all__ = [
    "Beam",
    "BestOfN",
    "BestOfNGuidance",
    "Blockwise",
    "Budget",
    "Draft",
    "Gate",
    "GradientGuidance",
    "GradientProposal",
    "Guide",
    "LookaheadGuidance",
    "NoiseOptimization",
    "NoiseSearch",
    "Previews",
    "Prune",
    "SMC",
    "StepGate",
    "Then",
    "Tree",
    "for_compute",
]
