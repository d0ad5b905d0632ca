"""The objectives of pairs as configured."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from steer.tune.goal import Errors, Goal, Outcome, agreement
from steer.tune.objectives import poly_dpo
from steer.tune.pair_objectives import (
    dmpo,
    dpo_positive,
    guarded_loser,
    ipo,
    mapo,
    robust_dpo,
    smoothing,
    soft_dpo,
)


class Paired(Goal):
    """Objectives of pairs, by a logit as in Diffusion-DPO.

    Attributes:
        beta: logit = -(beta / 2)((MSE_w - ref_w) - (MSE_l - ref_l)).
        guard: SDPO's safeguard of the winner (arXiv:2511.03317), such as 0.9; None leaves the
            loser's gradient as it is.
    """

    pairs: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    scaled_by: ClassVar[str] = "beta"
    beta: float = Field(default=5000.0, gt=0)
    guard: float | None = Field(default=None, ge=0, le=1)

    @property
    def product(self) -> bool:
        return self.guard is not None

    def loss(self, errors: Errors) -> Outcome:
        if self.guard is not None:
            winner, loser = errors.policy.chunk(2)
            assert errors.product is not None
            loser = guarded_loser(winner, loser, errors.product, self.guard)
            errors = replace(errors, policy=torch.cat([winner, loser]))
        winner, loser = errors.reward(self.beta / 2).chunk(2)
        logit = winner - loser
        loss = self.of_rewards(winner, loser, errors)
        return Outcome(loss, agreement(logit), logit.detach())

    def of_rewards(self, winner: Tensor, loser: Tensor, errors: Errors) -> Tensor:
        """The loss per pair from both implicit rewards, (B,)."""
        return self.rows((winner - loser) * self.factors(errors))

    def factors(self, errors: Errors) -> Tensor | float:
        """What the logits are multiplied by in the loss, (B,) or one for all."""
        return 1.0

    @abstractmethod
    def rows(self, logit: Tensor) -> Tensor:
        """The loss per pair, (B,)."""


class PolyDPO(Paired):
    """Poly-DPO (arXiv:2604.24953).

    Attributes:
        alpha: 0 is Diffusion-DPO; about 8 for noisy preferences; at least -1.
    """

    name: ClassVar[str] = "poly_dpo"
    alpha: float = 0.0

    @model_validator(mode="after")
    def _check_alpha(self) -> PolyDPO:
        poly_dpo(torch.zeros(1), self.alpha)
        return self

    def rows(self, logit: Tensor) -> Tensor:
        return poly_dpo(logit, self.alpha)


class DiffusionDPO(PolyDPO):
    """Diffusion-DPO (arXiv:2311.12908): Poly-DPO at alpha = 0."""

    name: ClassVar[str] = "dpo"

    @model_validator(mode="after")
    def _check_none(self) -> DiffusionDPO:
        if self.alpha:
            raise ValueError(f"objective.alpha={self.alpha!r}: dpo has none; use poly_dpo")
        return self


class DMPO(Paired):
    """A target margin for every pair: bounded in both directions (see `dmpo`).

    Attributes:
        alpha: The share of pairs that may stay wrong.
    """

    name: ClassVar[str] = "dmpo"
    beta: float = Field(default=2000.0, gt=0)
    alpha: float = Field(default=0.01, gt=0, lt=0.5)

    def rows(self, logit: Tensor) -> Tensor:
        return dmpo(logit, self.alpha)


class RobustDPO(Paired):
    """Robust DPO (arXiv:2403.00409), for labels that are flipped at a known rate.

    Attributes:
        flips: That rate.
    """

    name: ClassVar[str] = "rdpo"
    flips: float = Field(default=0.1, ge=0, lt=0.5)

    def rows(self, logit: Tensor) -> Tensor:
        return robust_dpo(logit, self.flips)


class ConservativeDPO(Paired):
    """DPO with labels that are wrong at a known rate, held back rather than corrected.

    Attributes:
        flips: That rate.
    """

    name: ClassVar[str] = "cdpo"
    flips: float = Field(default=0.1, ge=0, lt=0.5)

    def rows(self, logit: Tensor) -> Tensor:
        return soft_dpo(logit, 1 - self.flips)


class SoftDPO(Paired):
    """DPO of pairs that are preferred with a probability p, not for certain.

    Preferences as distributions over judges are from DPRM (arXiv:2402.09764).

    Attributes:
        span: Largest minus smallest score of the reward; p is then sigma(margin / span). None takes
            margins for the share of votes for the winner minus the share against it, as
            `consensus: majority` makes them; p is then (1 + margin) / 2.
    """

    name: ClassVar[str] = "soft_dpo"
    span: float | None = Field(default=None, gt=0)

    @property
    def takes_votes(self) -> bool:
        return self.span is None

    def of_rewards(self, winner: Tensor, loser: Tensor, errors: Errors) -> Tensor:
        margin = errors.weights
        assert margin is not None
        share = (1 + margin) / 2 if self.span is None else (margin / self.span).sigmoid()
        return soft_dpo(winner - loser, share)

    def rows(self, logit: Tensor) -> Tensor:
        return poly_dpo(logit, 0.0)


class DPOP(Paired):
    """DPO-Positive (arXiv:2402.13228): winners do not become less likely than before.

    Attributes:
        weight: Of that; 0 is DPO.
    """

    name: ClassVar[str] = "dpop"
    weight: float = Field(default=5.0, ge=0)

    def of_rewards(self, winner: Tensor, loser: Tensor, errors: Errors) -> Tensor:
        return dpo_positive(winner, loser, self.weight)

    def rows(self, logit: Tensor) -> Tensor:
        return poly_dpo(logit, 0.0)


class IPO(Paired):
    """IPO (arXiv:2310.12036): a bounded margin for every pair."""

    name: ClassVar[str] = "ipo"

    def rows(self, logit: Tensor) -> Tensor:
        return ipo(logit)


class SmPO(Paired):
    """SmPO's smoothed labels (arXiv:2506.02698), from the pairs' margins; without its inversion.

    Attributes:
        span: Largest minus smallest score of the reward; the default is the paper's for PickScore.
        factor: Of the logits of certain pairs.
    """

    name: ClassVar[str] = "smpo"
    beta: float = Field(default=2000.0, gt=0)
    span: float = Field(default=0.167, gt=0)
    factor: float = Field(default=10.0, gt=0)

    def factors(self, errors: Errors) -> Tensor | float:
        assert errors.weights is not None
        return smoothing(errors.weights, self.span, self.factor)

    def rows(self, logit: Tensor) -> Tensor:
        return poly_dpo(logit, 0.0)


class MaPO(Goal):
    """MaPO (arXiv:2406.06424): no reference.

    Attributes:
        beta: Weight of the margin; the winner's own error has 1.
        scale: Of errors in the margin.
    """

    name: ClassVar[str] = "mapo"
    squared: ClassVar[bool] = True
    pairs: ClassVar[bool] = True
    reference: ClassVar[bool] = False
    labelled: ClassVar[bool] = False
    beta: float = Field(default=0.1, gt=0)
    scale: float = Field(default=0.5, gt=0)

    def loss(self, errors: Errors) -> Outcome:
        winner, loser = errors.policy.chunk(2)
        return Outcome(mapo(winner, loser, self.beta, self.scale))
