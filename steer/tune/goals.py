"""The objectives as configured: from errors of policy and reference to a loss per row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from steer.core.settings import Settings
from steer.tune.advantages import Spread
from steer.tune.forward_rl import awm, nft
from steer.tune.objectives import (
    CSFT_MARK,
    diffusion_kto,
    implicit_reward,
    kto_baseline,
    poly_dpo,
    tgo,
)


@dataclass(frozen=True)
class Errors:
    """Denoising errors of one batch, and what its images are labelled with.

    Attributes:
        policy: (B,) errors; for pairs (2 B,), all winners before all losers.
        reference: Those of the reference, at the same noise and timesteps; None without one.
        labels: (B,) 1 for good images, of labelled objectives.
        weights: (B,), likewise; signed where they are advantages.
        baseline: (), of Diffusion-KTO; None takes it from this batch.
        change: (B,) mean squared difference of the policy's prediction from the reference's; None
            where the objective does not ask for it.
    """

    policy: Tensor
    reference: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None
    baseline: Tensor | None = None
    change: Tensor | None = None

    def reward(self, beta: float) -> Tensor:
        """The implicit rewards, (B,); needs the reference."""
        assert self.reference is not None
        return implicit_reward(-self.policy, -self.reference, beta)


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


class Goal(Settings, ABC):
    """An objective and its parameters; `name` is what configurations call it.

    Attributes:
        pairs: Learns from pairs rather than from single images.
        reference: Needs the reference model's errors.
        labelled: Needs a label for every image.
        change: Needs how far the policy's prediction is from the reference's.
        on_policy: Its reference is the policy that drew the samples.
    """

    name: ClassVar[str] = ""
    pairs: ClassVar[bool] = False
    reference: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    change: ClassVar[bool] = False
    on_policy: ClassVar[bool] = False

    @abstractmethod
    def loss(self, errors: Errors) -> Outcome:
        """The loss per row."""

    def baseline(self, errors: Errors) -> Tensor | None:
        """What the loss needs of the whole batch (over all processes, the mean is taken)."""
        return None


class Labelled(Goal):
    """Objectives of single images, good or bad by a threshold.

    Attributes:
        quantile: Of the training scores, where the threshold lies.
        per_prompt: One threshold per prompt, from its own scores.
        threshold: A file of `steer.Threshold.save` to use instead.
        score: The column of scores.
        positive_share: Share of good images in every batch; None takes them as they come.
    """

    quantile: float = Field(default=0.5, ge=0, le=1)
    per_prompt: bool = False
    threshold: str | None = None
    score: str = "score"
    positive_share: float | None = Field(default=None, gt=0, lt=1)


class TGO(Labelled):
    """Threshold-guided optimisation (arXiv:2605.04653); its published settings are the defaults.

    Attributes:
        beta, temperature: The implicit reward is -(beta / temperature)(MSE - MSE_ref).
        c: Confidence: weights are 1 + c |s - tau|.
        units: `"raw"`, or `"spread"` to measure the distance in the scores' standard deviations.
    """

    name: ClassVar[str] = "tgo"
    beta: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1e-3, gt=0)
    c: float = Field(default=5.0, ge=0)
    units: Literal["raw", "spread"] = "raw"

    def loss(self, errors: Errors) -> Outcome:
        reward = errors.reward(self.beta / self.temperature)
        assert errors.labels is not None
        return _single(tgo(reward, errors.labels, errors.weights), reward, errors.labels)


class KTO(Labelled):
    """Diffusion-KTO (arXiv:2404.04465), sigmoid utility.

    Attributes:
        beta: The implicit reward is -beta (MSE - MSE_ref).
        positive, negative: Weights of the two labels.
    """

    name: ClassVar[str] = "kto"
    beta: float = Field(default=5000.0, gt=0)
    positive: float = Field(default=1.0, ge=0)
    negative: float = Field(default=1.0, ge=0)

    def loss(self, errors: Errors) -> Outcome:
        reward, labels = errors.reward(self.beta), errors.labels
        assert labels is not None
        loss = diffusion_kto(reward, labels, errors.baseline, self.positive, self.negative)
        return _single(loss, reward, labels)

    def baseline(self, errors: Errors) -> Tensor | None:
        return kto_baseline(errors.reward(self.beta))


class SFT(Labelled):
    """Supervised fine-tuning on the images above the threshold, and on no others."""

    name: ClassVar[str] = "sft"
    reference: ClassVar[bool] = False

    def loss(self, errors: Errors) -> Outcome:
        return Outcome(errors.policy)


class CSFT(SFT):
    """Conditional supervised fine-tuning on all images; bad ones get a marked prompt.

    Attributes:
        mark: Put before their prompts; belongs into the negative prompt when sampling.
    """

    name: ClassVar[str] = "csft"
    mark: str = CSFT_MARK


class Advantaged(Goal):
    """Objectives of single images, by how much better they are than others of their prompt.

    Attributes:
        advantage: `"standard"`, the score's distance from the prompt's mean in standard
            deviations; or `"best_of_n"`, best-of-n's weights minus 1.
        n: Of best-of-n.
        spread: Of the standard deviation: `"global"`, or each `"prompt"`'s own.
        clip: Standard advantages are clipped there, and divided by it.
        score: The column of scores.
    """

    change: ClassVar[bool] = True
    on_policy: ClassVar[bool] = True
    advantage: Literal["standard", "best_of_n"] = "standard"
    n: int = Field(default=4, ge=2)
    spread: Spread = "global"
    clip: float = Field(default=5.0, gt=0)
    score: str = "score"

    def loss(self, errors: Errors) -> Outcome:
        assert errors.labels is not None and errors.weights is not None
        assert errors.reference is not None and errors.change is not None
        terms = (errors.policy, errors.reference, errors.change, errors.weights)
        return _single(self.rows(*terms), errors.reward(1.0), errors.labels)

    @abstractmethod
    def rows(self, error: Tensor, old: Tensor, change: Tensor, advantage: Tensor) -> Tensor:
        """The loss per row, (B,)."""


class NFT(Advantaged):
    """DiffusionNFT (arXiv:2509.16117).

    Attributes:
        beta: The optimum is 1 / beta times as far from the old policy.
    """

    name: ClassVar[str] = "nft"
    beta: float = Field(default=1.0, gt=0)

    def rows(self, error: Tensor, old: Tensor, change: Tensor, advantage: Tensor) -> Tensor:
        return nft(error, old, change, advantage, self.beta)


class AWM(Advantaged):
    """Advantage-weighted matching (arXiv:2509.25050).

    Attributes:
        ratio_clip: How far the ratio of likelihoods may go from 1.
        leash: Weight of the squared change of predictions.
    """

    name: ClassVar[str] = "awm"
    ratio_clip: float = Field(default=1.0, gt=0)
    leash: float = Field(default=1.0, ge=0)

    def rows(self, error: Tensor, old: Tensor, change: Tensor, advantage: Tensor) -> Tensor:
        return awm(error, old, change, advantage, self.ratio_clip, self.leash)


class PolyDPO(Goal):
    """Poly-DPO (arXiv:2604.24953).

    Attributes:
        beta: As in Diffusion-DPO: logit = -(beta / 2)((MSE_w - ref_w) - (MSE_l - ref_l)).
        alpha: 0 is Diffusion-DPO; about 8 for noisy preferences; at least -1.
    """

    name: ClassVar[str] = "poly_dpo"
    pairs: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    beta: float = Field(default=5000.0, gt=0)
    alpha: float = 0.0

    @model_validator(mode="after")
    def _check_alpha(self) -> PolyDPO:
        poly_dpo(torch.zeros(1), self.alpha)
        return self

    def loss(self, errors: Errors) -> Outcome:
        winner, loser = errors.reward(self.beta / 2).chunk(2)
        logit = winner - loser
        return Outcome(poly_dpo(logit, self.alpha), _agreement(logit), logit.detach())


class DiffusionDPO(PolyDPO):
    """Diffusion-DPO (arXiv:2311.12908): Poly-DPO at alpha = 0."""

    name: ClassVar[str] = "dpo"

    @model_validator(mode="after")
    def _check_none(self) -> DiffusionDPO:
        if self.alpha:
            raise ValueError(f"objective.alpha={self.alpha!r}: dpo has none; use poly_dpo")
        return self


GOALS: dict[str, type[Goal]] = {
    k.name: k for k in (TGO, KTO, SFT, CSFT, PolyDPO, DiffusionDPO, NFT, AWM)
}


def _single(loss: Tensor, reward: Tensor, labels: Tensor) -> Outcome:
    signed = (2 * labels.to(reward) - 1) * reward.detach()
    return Outcome(loss, _agreement(signed), signed)


def _agreement(margin: Tensor) -> Tensor:
    return (1 + margin.detach().sign()) / 2
