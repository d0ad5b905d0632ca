"""Blends that are weighted sums of model outputs: RLG, SwitchAt, PreferenceGuidance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steer.driver.denoisers.blend import BASE, NEGATIVE, TUNED, Blend, Mix, number
from steer.driver.denoisers.scales import Scale, at, check_scale


@dataclass(frozen=True)
class RLG(Blend):
    """`base + scale * (tuned - base)`: the strength of the tuning as a parameter of sampling.

    RL guidance (arXiv:2508.21016). 0 is the base and 1 the tuned model, bit for bit and at the cost
    of one model; between them it interpolates, above 1 it extrapolates (published gains between 1
    and 3). If the tuned model is the base tilted by exp(reward / beta), a scale s stands for
    beta / s. Two denoiser evaluations per row.

    Args:
        scale: A number, or a schedule (`linear`, `window`).

    Raises:
        ValueError: Not a finite number or a schedule.
    """

    scale: Scale

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)

    def mix(self, index: int, steps: int) -> Mix:
        """Both models, or one where the other has no weight."""
        scale = at(self.scale, index, steps)
        return Mix({BASE: 1.0 - scale, TUNED: scale})


@dataclass(frozen=True)
class SwitchAt(Blend):
    """The base for the first `fraction` of the steps, the tuned model for the rest.

    Combined generation of ImageReFL (arXiv:2505.22569), which restores diversity that tuning lost;
    its model card recommends the base for 30 of 50 steps with SD1.5, 35 with SDXL. One denoiser
    evaluation per row. 0 is the tuned model and 1 the base, bit for bit.

    Args:
        fraction: Of the steps, from 0 to 1; the base makes the first `ceil(fraction * steps)`.

    Raises:
        ValueError: Not a number from 0 to 1.
    """

    fraction: float

    def __post_init__(self) -> None:
        number("fraction", self.fraction, 0, 1)

    def mix(self, index: int, steps: int) -> Mix:
        """One of the two."""
        first = math.ceil(self.fraction * steps - 1e-9)
        return Mix({BASE: 1.0} if index < first else {TUNED: 1.0})


@dataclass(frozen=True)
class PreferenceGuidance(Blend):
    """`base + scale * (tuned - negative)`: a preferred minus a dispreferred model, on the base.

    The difference of a model tuned on preferred and one tuned on dispreferred data is added to the
    base (Jiang et al. 2026, arXiv:2602.18799). Three denoiser evaluations per row; one at scale 0.

    Args:
        negative: The model tuned on dispreferred data: whatever `tuned=` takes.
        scale: A number, or a schedule (`linear`, `window`).

    Raises:
        ValueError: No negative model, or a scale that is not finite.
    """

    negative: Any
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        check_source("negative", self.negative)
        check_scale("scale", self.scale)

    @property
    def sources(self) -> Mapping[str, Any]:
        """The negative model."""
        return {NEGATIVE: self.negative}

    def mix(self, index: int, steps: int) -> Mix:
        """All three."""
        scale = at(self.scale, index, steps)
        return Mix({BASE: 1.0, TUNED: scale, NEGATIVE: -scale})


def check_source(name: str, value: Any) -> None:
    """Raise ValueError where a blend's own model is left empty."""
    if value is None or value == "":
        raise ValueError(
            f"{name}={value!r}: give its model: a name of `steer tuned`, a hub id, a folder, a "
            "file, a steer.denoisers.Checkpoint or a denoiser"
        )
