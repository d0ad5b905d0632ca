"""The objectives of single images as configured, and all objectives by name."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from steer.tune.advantages import Spread
from steer.tune.forward_rl import awm, nft, reward_weighted
from steer.tune.goal import Errors, Goal, Outcome, single_outcome
from steer.tune.objectives import CSFT_MARK, diffusion_kto, kto_baseline, tgo
from steer.tune.pair_goals import (
    DMPO,
    DPOP,
    IPO,
    ConservativeDPO,
    DiffusionDPO,
    MaPO,
    PolyDPO,
    RobustDPO,
    SmPO,
    SoftDPO,
)


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
    scaled_by: ClassVar[str] = "temperature"
    beta: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1e-3, gt=0)
    c: float = Field(default=5.0, ge=0)
    units: Literal["raw", "spread"] = "raw"

    def loss(self, errors: Errors) -> Outcome:
        reward = errors.reward(self.beta / self.temperature)
        assert errors.labels is not None
        return single_outcome(tgo(reward, errors.labels, errors.weights), reward, errors.labels)


class KTO(Labelled):
    """Diffusion-KTO (arXiv:2404.04465), sigmoid utility.

    Attributes:
        beta: The implicit reward is -beta (MSE - MSE_ref).
        positive, negative: Weights of the two labels.
    """

    name: ClassVar[str] = "kto"
    scaled_by: ClassVar[str] = "beta"
    beta: float = Field(default=5000.0, gt=0)
    positive: float = Field(default=1.0, ge=0)
    negative: float = Field(default=1.0, ge=0)

    def loss(self, errors: Errors) -> Outcome:
        reward, labels = errors.reward(self.beta), errors.labels
        assert labels is not None
        loss = diffusion_kto(reward, labels, errors.baseline, self.positive, self.negative)
        return single_outcome(loss, reward, labels)

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
        return single_outcome(self.rows(*terms), errors.reward(1.0), errors.labels)

    @abstractmethod
    def rows(self, error: Tensor, old: Tensor, change: Tensor, advantage: Tensor) -> Tensor:
        """The loss per row, (B,)."""


class NFT(Advantaged):
    """DiffusionNFT (arXiv:2509.16117).

    Attributes:
        beta: The optimum is 1 / beta times as far from the old policy.
    """

    name: ClassVar[str] = "nft"
    squared: ClassVar[bool] = True
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


class ORW(Advantaged):
    """Reward-weighted fine-tuning, held near the model before tuning (arXiv:2502.06061).

    Attributes:
        tau: Weights are exp(tau A).
        leash: Weight of the squared change of predictions.
    """

    name: ClassVar[str] = "orw"
    on_policy: ClassVar[bool] = False
    tau: float = Field(default=5.0, ge=0)
    leash: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _check_advantage(self) -> ORW:
        if self.advantage != "standard":
            raise ValueError(
                f"objective.advantage={self.advantage!r}: orw has weights of its own; leave it out"
            )
        return self

    def rows(self, error: Tensor, old: Tensor, change: Tensor, advantage: Tensor) -> Tensor:
        return reward_weighted(error, change, advantage, self.tau, self.leash)


GOALS: dict[str, type[Goal]] = {
    kind.name: kind
    for kind in (
        *(TGO, KTO, SFT, CSFT, PolyDPO, DiffusionDPO, NFT, AWM, DMPO, RobustDPO, MaPO),
        *(ConservativeDPO, SoftDPO, IPO, SmPO, DPOP, ORW),
    )
}
