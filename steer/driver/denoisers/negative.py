"""Blends that evaluate the null prompt of classifier-free guidance with a dispreferred model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from steer.driver.denoisers.blend import NEGATIVE, TUNED, Blend, Mix, number
from steer.driver.denoisers.outputs import check_source


@dataclass(frozen=True)
class NegativeGuidance(Blend):
    """`neg(null) + g * (pos(prompt) - neg(null))`: guided away from what a worse model draws.

    Diffusion-NPO (arXiv:2505.11245) and Self-NPO (arXiv:2505.11777): g is the pipeline's own
    guidance scale, pos the tuned model (the base where `tuned=` is left out), and neg has the
    weights `negative + (1 - merge) * (pos - base)`, so that both sides share what tuning changed.
    As many denoiser evaluations as the plain call, with classifier-free guidance on.

    Args:
        negative: The model tuned against preferences: whatever `tuned=` takes.
        merge: From 0 (the published examples') to 1, the negative model as it is.

    Raises:
        ValueError: No negative model, or a merge weight outside of 0 to 1.
    """

    negative: Any
    merge: float = 0.0
    needs_tuned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_source("negative", self.negative)
        number("merge", self.merge, 0, 1)

    @property
    def sources(self) -> Mapping[str, Any]:
        """The negative model."""
        return {NEGATIVE: self.negative}

    @property
    def inherited(self) -> float:
        """`1 - merge`."""
        return 1.0 - self.merge

    def mix(self, index: int, steps: int) -> Mix:
        """The positive model at the prompt, the negative one at the null prompt."""
        return Mix({TUNED: 1.0}, {NEGATIVE: 1.0})


@dataclass(frozen=True)
class CHATS(Blend):
    """`pos(prompt) + s * (pos(prompt) - neg(proxy))`: preferred and dispreferred models.

    CHATS (arXiv:2502.12579): in place of the null prompt the dispreferred model at a proxy prompt,
    `(1 + alpha) * null - alpha * prompt`, in text and pooled embeddings. The pipeline's own
    guidance scale is s + 1: pass `guidance_scale=6` for the published s = 5. As many denoiser
    evaluations as the plain call.

    Args:
        dispreferred: The second model: whatever `tuned=` takes; used as it is.
        proxy: alpha, 0.5 as published; 0 leaves the null prompt.

    Raises:
        ValueError: No dispreferred model, or a negative `proxy`.
    """

    dispreferred: Any
    proxy: float = 0.5

    def __post_init__(self) -> None:
        check_source("dispreferred", self.dispreferred)
        number("proxy", self.proxy, 0)

    @property
    def sources(self) -> Mapping[str, Any]:
        """The dispreferred model."""
        return {NEGATIVE: self.dispreferred}

    def mix(self, index: int, steps: int) -> Mix:
        """The preferred model at the prompt, the dispreferred one at the proxy."""
        return Mix({TUNED: 1.0}, {NEGATIVE: 1.0}, proxy=float(self.proxy))
