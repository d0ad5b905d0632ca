"""The objectives as configured: from errors of policy and reference to a loss per row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steer.core.errors import TuneError
from steer.tune.objectives import (
    CSFT_MARK,
    diffusion_kto,
    implicit_reward,
    kto_baseline,
    poly_dpo,
    tgo,
)


@dataclass(frozen=True)
class Outcome:
    """Of one batch.

    Attributes:
        loss: (B,) per row, or per pair.
        correct: (B,) 1 where the implicit reward agrees with the preference, 0.5 in a tie; None
            without a reference.
        margin: (B,) the winner's implicit reward minus the loser's, or the reward with the label's
            sign; None without a reference.
    """

    loss: Tensor
    correct: Tensor | None = None
    margin: Tensor | None = None


@dataclass(frozen=True)
class Goal(ABC):
    """An objective and its parameters; `name` is what configurations call it.

    Attributes:
        pairs: Learns from pairs rather than from single images.
        reference: Needs the reference model's errors.
        labelled: Needs a label for every image.
    """

    name: ClassVar[str] = ""
    pairs: ClassVar[bool] = False
    reference: ClassVar[bool] = True
    labelled: ClassVar[bool] = True

    @abstractmethod
    def loss(
        self,
        policy: Tensor,
        reference: Tensor | None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        baseline: Tensor | None = None,
    ) -> Outcome:
        """The loss per row.

        Args:
            policy: (B,) errors; for pairs (2 B,), all winners before all losers.
            reference: Those of the reference, at the same noise and timesteps.
            labels, weights: (B,), of labelled objectives.
            baseline: (), of Diffusion-KTO.
        """

    def baseline(self, policy: Tensor, reference: Tensor | None) -> Tensor | None:
        """What the loss needs of the whole batch (over all processes, the mean is taken)."""
        return None


@dataclass(frozen=True)
class Labelled(Goal):
    """Objectives of single images, good or bad by a threshold.

    Attributes:
        quantile: Of the training scores, where the threshold lies.
        per_prompt: One threshold per prompt, from its own scores.
        threshold: A file of `steer.Threshold.save` to use instead.
        score: The column of scores.
        positive_share: Share of good images in every batch; None takes them as they come.
    """

    quantile: float = 0.5
    per_prompt: bool = False
    threshold: str | None = None
    score: str = "score"
    positive_share: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise TuneError(f"objective.quantile={self.quantile!r}: must be in [0, 1]")
        if self.positive_share is not None and not 0 < self.positive_share < 1:
            raise TuneError(
                f"objective.positive_share={self.positive_share!r}: must be between 0 and 1"
            )


@dataclass(frozen=True)
class TGO(Labelled):
    """Threshold-guided optimisation (arXiv:2605.04653); its published settings are the defaults.

    Attributes:
        beta, temperature: The implicit reward is -(beta / temperature)(MSE - MSE_ref).
        c: Confidence: weights are 1 + c |s - tau|.
        units: `"raw"`, or `"spread"` to measure the distance in the scores' standard deviations.
    """

    name: ClassVar[str] = "tgo"
    beta: float = 1.0
    temperature: float = 1e-3
    c: float = 5.0
    units: str = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_beta(self.beta)
        if not self.temperature > 0:
            raise TuneError(f"objective.temperature={self.temperature!r}: must be positive")
        if not self.c >= 0:
            raise TuneError(f"objective.c={self.c!r}: must not be negative")
        if self.units not in ("raw", "spread"):
            raise TuneError(f"objective.units={self.units!r}: 'raw' or 'spread'")

    def loss(
        self,
        policy: Tensor,
        reference: Tensor | None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        baseline: Tensor | None = None,
    ) -> Outcome:
        assert reference is not None and labels is not None
        reward = implicit_reward(-policy, -reference, self.beta / self.temperature)
        return _single(tgo(reward, labels, weights), reward, labels)


@dataclass(frozen=True)
class KTO(Labelled):
    """Diffusion-KTO (arXiv:2404.04465), sigmoid utility.

    Attributes:
        beta: The implicit reward is -beta (MSE - MSE_ref).
        positive, negative: Weights of the two labels.
    """

    name: ClassVar[str] = "kto"
    beta: float = 5000.0
    positive: float = 1.0
    negative: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_beta(self.beta)
        if not (self.positive >= 0 and self.negative >= 0):
            raise TuneError(
                f"objective.positive={self.positive!r}, negative={self.negative!r}: must not be "
                "negative"
            )

    def loss(
        self,
        policy: Tensor,
        reference: Tensor | None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        baseline: Tensor | None = None,
    ) -> Outcome:
        assert reference is not None and labels is not None
        reward = implicit_reward(-policy, -reference, self.beta)
        loss = diffusion_kto(reward, labels, baseline, self.positive, self.negative)
        return _single(loss, reward, labels)

    def baseline(self, policy: Tensor, reference: Tensor | None) -> Tensor | None:
        assert reference is not None
        return kto_baseline(implicit_reward(-policy, -reference, self.beta))


@dataclass(frozen=True)
class SFT(Labelled):
    """Supervised fine-tuning on the images above the threshold, and on no others."""

    name: ClassVar[str] = "sft"
    reference: ClassVar[bool] = False

    def loss(
        self,
        policy: Tensor,
        reference: Tensor | None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        baseline: Tensor | None = None,
    ) -> Outcome:
        return Outcome(policy)


@dataclass(frozen=True)
class CSFT(SFT):
    """Conditional supervised fine-tuning on all images; bad ones get a marked prompt.

    Attributes:
        mark: Put before their prompts; belongs into the negative prompt when sampling.
    """

    name: ClassVar[str] = "csft"
    mark: str = CSFT_MARK


@dataclass(frozen=True)
class PolyDPO(Goal):
    """Poly-DPO (arXiv:2604.24953).

    Attributes:
        beta: As in Diffusion-DPO: logit = -(beta / 2)((MSE_w - ref_w) - (MSE_l - ref_l)).
        alpha: 0 is Diffusion-DPO; about 8 for noisy preferences; at least -1.
    """

    name: ClassVar[str] = "poly_dpo"
    pairs: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    beta: float = 5000.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        poly_dpo(torch.zeros(1), self.alpha)

    def loss(
        self,
        policy: Tensor,
        reference: Tensor | None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        baseline: Tensor | None = None,
    ) -> Outcome:
        assert reference is not None
        winner, loser = implicit_reward(-policy, -reference, self.beta / 2).chunk(2)
        logit = winner - loser
        return Outcome(poly_dpo(logit, self.alpha), _agreement(logit), logit.detach())


@dataclass(frozen=True)
class DiffusionDPO(PolyDPO):
    """Diffusion-DPO (arXiv:2311.12908): Poly-DPO at alpha = 0."""

    name: ClassVar[str] = "dpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha:
            raise TuneError(f"objective.alpha={self.alpha!r}: dpo has none; use poly_dpo")


GOALS: dict[str, type[Goal]] = {k.name: k for k in (TGO, KTO, SFT, CSFT, PolyDPO, DiffusionDPO)}


def _single(loss: Tensor, reward: Tensor, labels: Tensor) -> Outcome:
    signed = (2 * labels.to(reward) - 1) * reward.detach()
    return Outcome(loss, _agreement(signed), signed)


def _agreement(margin: Tensor) -> Tensor:
    return (1 + margin.detach().sign()) / 2


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise TuneError(f"objective.beta={beta!r}: must be positive")
