"""steer: inference-time alignment for diffusers pipelines."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from steer import methods as methods, rewards as rewards, shapes as shapes, tune as tune
    from steer.core import errors as errors
    from steer.core.errors import SteerError as SteerError
    from steer.core.when import at as at, between as between, every as every
    from steer.driver import denoisers as denoisers
    from steer.driver.denoisers.outputs import RLG as RLG
    from steer.methods.guidance.guide import Guide as Guide
    from steer.methods.particles.smc import SMC as SMC
    from steer.methods.selection.best_of_n import BestOfN as BestOfN
    from steer.methods.selection.budget import Budget as Budget
    from steer.methods.selection.gate import Gate as Gate
    from steer.methods.selection.prune import Prune as Prune
    from steer.methods.selection.then import Then as Then
    from steer.pipeline.drop_in import drop_in as drop_in
    from steer.pipeline.guided import Guided as Guided, guided as guided
    from steer.pipeline.pilot_runs import calibrate_gate as calibrate_gate
    from steer.pipeline.planning.calibrate import calibrate as calibrate
    from steer.pipeline.planning.plans import Plans as Plans
    from steer.rewards.registry import (
        available_rewards as available_rewards,
        register_reward as register_reward,
        reward as reward,
    )
    from steer.rewards.thresholds.threshold import Threshold as Threshold
    from steer.search import picks as picks

_HOME = {
    "guided": "pipeline.guided",
    "Guided": "pipeline.guided",
    "drop_in": "pipeline.drop_in",
    "calibrate": "pipeline.planning.calibrate",
    "Plans": "pipeline.planning.plans",
    "calibrate_gate": "pipeline.pilot_runs",
    "reward": "rewards.registry",
    "register_reward": "rewards.registry",
    "available_rewards": "rewards.registry",
    "Threshold": "rewards.thresholds.threshold",
    "BestOfN": "methods.selection.best_of_n",
    "Prune": "methods.selection.prune",
    "Gate": "methods.selection.gate",
    "Then": "methods.selection.then",
    "Budget": "methods.selection.budget",
    "SMC": "methods.particles.smc",
    "Guide": "methods.guidance.guide",
    "RLG": "driver.denoisers.outputs",
    "every": "core.when",
    "between": "core.when",
    "at": "core.when",
    "SteerError": "core.errors",
}
"""Public names, and the module that each one lives in; it is imported at first use."""

_FOLDERS = {
    "methods": "methods",
    "rewards": "rewards",
    "denoisers": "driver.denoisers",
    "errors": "core.errors",
    "picks": "search.picks",
    "pipeline": "pipeline",
    "shapes": "shapes",
    "tune": "tune",
}
"""What is one level down: `steer.methods.Tree`, `steer.denoisers.CHATS`, `steer.errors`."""

__all__ = [*_HOME, *_FOLDERS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("steer-diffusion")
        except PackageNotFoundError:  # a copy that was never installed
            return "0+unknown"
    if name in _FOLDERS:
        return importlib.import_module(f"steer.{_FOLDERS[name]}")
    if name in _HOME:
        return getattr(importlib.import_module(f"steer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'steer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
