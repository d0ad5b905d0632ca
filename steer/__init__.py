"""steer: inference-time alignment for diffusers pipelines."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from steer import shapes as shapes, tune as tune
    from steer.blending import (
        CHATS as CHATS,
        RLG as RLG,
        NegativeGuidance as NegativeGuidance,
        PreferenceGuidance as PreferenceGuidance,
        SwitchAt as SwitchAt,
        linear as linear,
        window as window,
    )
    from steer.calibration import Calibration as Calibration, Pilots as Pilots
    from steer.checkpoints import Checkpoint as Checkpoint
    from steer.drive import SteeredScheduler as SteeredScheduler
    from steer.errors import (
        CheckpointError as CheckpointError,
        GradientError as GradientError,
        NotAcceptedError as NotAcceptedError,
        OutOfMemoryError as OutOfMemoryError,
        RewardError as RewardError,
        SteerError as SteerError,
        UnsupportedPipelineError as UnsupportedPipelineError,
        UnsupportedSchedulerError as UnsupportedSchedulerError,
    )
    from steer.lookahead import LookaheadSet as LookaheadSet, lookaheads as lookaheads
    from steer.methods import (
        SMC as SMC,
        Beam as Beam,
        BestOfN as BestOfN,
        BestOfNGuidance as BestOfNGuidance,
        Blockwise as Blockwise,
        Budget as Budget,
        Draft as Draft,
        Gate as Gate,
        GradientGuidance as GradientGuidance,
        GradientProposal as GradientProposal,
        Guide as Guide,
        LookaheadGuidance as LookaheadGuidance,
        NoiseOptimization as NoiseOptimization,
        NoiseSearch as NoiseSearch,
        Previews as Previews,
        Prune as Prune,
        StepGate as StepGate,
        Then as Then,
        Tree as Tree,
    )
    from steer.pilot_runs import calibrate as calibrate, pilots as pilots
    from steer.pipeline import Guided as Guided, guided as guided
    from steer.rewards import (
        AtLeast as AtLeast,
        PerFrame as PerFrame,
        available_rewards as available_rewards,
        register_reward as register_reward,
        reward as reward,
    )
    from steer.samples import Scores as Scores, ThresholdError as ThresholdError
    from steer.threshold import Threshold as Threshold
    from steer.when import at as at, between as between, every as every

__version__ = "0.1.0"

_HOME = {
    "guided": "pipeline",
    "Guided": "pipeline",
    "SteeredScheduler": "drive",
    "BestOfN": "methods",
    "Prune": "methods",
    "Draft": "methods",
    "Gate": "methods",
    "SMC": "methods",
    "Beam": "methods",
    "Blockwise": "methods",
    "Tree": "methods",
    "StepGate": "methods",
    "NoiseSearch": "methods",
    "NoiseOptimization": "methods",
    "Then": "methods",
    "Budget": "methods",
    "Previews": "methods",
    "GradientGuidance": "methods",
    "GradientProposal": "methods",
    "Guide": "methods",
    "BestOfNGuidance": "methods",
    "LookaheadGuidance": "methods",
    "LookaheadSet": "lookahead",
    "lookaheads": "lookahead",
    "RLG": "blending",
    "SwitchAt": "blending",
    "NegativeGuidance": "blending",
    "CHATS": "blending",
    "PreferenceGuidance": "blending",
    "linear": "blending",
    "window": "blending",
    "Checkpoint": "checkpoints",
    "every": "when",
    "between": "when",
    "at": "when",
    "Threshold": "threshold",
    "Scores": "samples",
    "Calibration": "calibration",
    "Pilots": "calibration",
    "pilots": "pilot_runs",
    "calibrate": "pilot_runs",
    "reward": "rewards",
    "AtLeast": "rewards",
    "PerFrame": "rewards",
    "available_rewards": "rewards",
    "register_reward": "rewards",
    "SteerError": "errors",
    "UnsupportedPipelineError": "errors",
    "UnsupportedSchedulerError": "errors",
    "RewardError": "errors",
    "CheckpointError": "errors",
    "GradientError": "errors",
    "NotAcceptedError": "errors",
    "OutOfMemoryError": "errors",
    "ThresholdError": "samples",
}

__all__ = [*_HOME, "shapes", "tune"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in ("shapes", "tune"):
        return importlib.import_module(f"steer.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"steer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'steer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
