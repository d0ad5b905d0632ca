"""Search methods: each file reads like its paper's algorithm box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer.core.lazy import lazy_names


if TYPE_CHECKING:
    from steer.methods.default import for_compute as for_compute
    from steer.methods.guidance.best_of_n import BestOfNGuidance as BestOfNGuidance
    from steer.methods.guidance.guide import Guide as Guide
    from steer.methods.guidance.lookahead import LookaheadGuidance as LookaheadGuidance
    from steer.methods.noise.ascent import ReNO as ReNO, Sphere as Sphere, ZeroOrder as ZeroOrder
    from steer.methods.noise.optimization import NoiseOptimization as NoiseOptimization
    from steer.methods.noise.pcnl import PCNL as PCNL
    from steer.methods.noise.search import NoiseSearch as NoiseSearch
    from steer.methods.particles.beam import Beam as Beam
    from steer.methods.particles.blockwise import Blockwise as Blockwise
    from steer.methods.particles.depth_first import DepthFirst as DepthFirst
    from steer.methods.particles.evo_search import EvoSearch as EvoSearch
    from steer.methods.particles.gradient_proposal import GradientProposal as GradientProposal
    from steer.methods.particles.noise_tilt import NoiseTilt as NoiseTilt
    from steer.methods.particles.rbf import RBF as RBF
    from steer.methods.particles.smc import SMC as SMC
    from steer.methods.particles.tree import Tree as Tree
    from steer.methods.selection.adaptive import Adaptive as Adaptive
    from steer.methods.selection.best_of_n import BestOfN as BestOfN
    from steer.methods.selection.budget import Budget as Budget
    from steer.methods.selection.gate import Gate as Gate
    from steer.methods.selection.prune import Prune as Prune
    from steer.methods.selection.then import Then as Then
    from steer.search.kernels.rho import Rho as Rho
    from steer.search.method import Method as Method

_MODULES = {
    "Adaptive": "steer.methods.selection.adaptive",
    "Beam": "steer.methods.particles.beam",
    "BestOfN": "steer.methods.selection.best_of_n",
    "BestOfNGuidance": "steer.methods.guidance.best_of_n",
    "Blockwise": "steer.methods.particles.blockwise",
    "Budget": "steer.methods.selection.budget",
    "DepthFirst": "steer.methods.particles.depth_first",
    "EvoSearch": "steer.methods.particles.evo_search",
    "for_compute": "steer.methods.default",
    "Gate": "steer.methods.selection.gate",
    "GradientProposal": "steer.methods.particles.gradient_proposal",
    "Guide": "steer.methods.guidance.guide",
    "LookaheadGuidance": "steer.methods.guidance.lookahead",
    "Method": "steer.search.method",
    "NoiseOptimization": "steer.methods.noise.optimization",
    "NoiseSearch": "steer.methods.noise.search",
    "NoiseTilt": "steer.methods.particles.noise_tilt",
    "PCNL": "steer.methods.noise.pcnl",
    "Prune": "steer.methods.selection.prune",
    "RBF": "steer.methods.particles.rbf",
    "ReNO": "steer.methods.noise.ascent",
    "Rho": "steer.search.kernels.rho",
    "SMC": "steer.methods.particles.smc",
    "Sphere": "steer.methods.noise.ascent",
    "Then": "steer.methods.selection.then",
    "Tree": "steer.methods.particles.tree",
    "ZeroOrder": "steer.methods.noise.ascent",
}

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
