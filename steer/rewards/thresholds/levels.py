"""Levels: how one follows from scores, and what rewards are beside it."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from steer.core.errors import ThresholdError
from steer.rewards.thresholds.scores import Floats


Rule: TypeAlias = Literal["quantile", "mean", "log-mean-exp"]


def check_rule(rule: str, quantile: float | None, beta: float | None) -> None:
    """Raise ThresholdError unless a rule is known and its parameter in range."""
    if rule not in get_args(Rule):
        raise ThresholdError(f"rule={rule!r}: one of {', '.join(map(repr, get_args(Rule)))}")
    if quantile is not None and (
        rule != "quantile" or not isinstance(quantile, int | float) or not 0 <= quantile <= 1
    ):
        raise ThresholdError(
            f"quantile={quantile!r} with rule={rule!r}: a number in [0, 1], of the rule 'quantile'"
        )
    if rule == "log-mean-exp" and not (isinstance(beta, int | float) and 0 < beta < math.inf):
        raise ThresholdError(
            f"beta={beta!r}: rule 'log-mean-exp' needs a positive number in the reward's units"
        )
    if rule != "log-mean-exp" and beta is not None:
        raise ThresholdError(f"beta={beta!r} with rule={rule!r}: of the rule 'log-mean-exp' only")


def find_level(scores: Floats, rule: Rule, quantile: float | None, beta: float | None) -> float:
    """The level that a rule finds in scores `(count,)`."""
    match rule:
        case "quantile":
            assert quantile is not None
            return float(np.quantile(scores, quantile))
        case "mean":
            return float(scores.mean())
        case "log-mean-exp":
            assert beta is not None
            return free_energy(scores, beta)


def free_energy(scores: Floats, beta: float) -> float:
    """`beta * log(mean(exp(scores / beta)))`, the free energy of a sample of rewards.

    The value of the KL-regularised optimum, beta log Z, by Monte Carlo. Shifted by the maximum, so
    it neither overflows nor loses digits: it tends to the mean as beta grows and to the maximum as
    beta falls to 0. (`core.resampling.log_mean_exp` subtracts log n, which for a large beta loses
    the digits that are multiplied back here.)
    """
    top = float(scores.max())
    with np.errstate(under="ignore", over="ignore"):
        return top + beta * math.log1p(float(np.expm1((scores - top) / beta).mean()))


def subtract_levels(r: Any, tau: Floats) -> Any:
    """`r - tau`, in float64 (float32 on devices without it).

    Args:
        r: Rewards: a number, a tensor, or an array or list of them, of any shape.
        tau: One level `()`, or one per entry of the first dimension.

    Returns:
        As `r`: a number, a tensor on its device, or an array.
    """
    if isinstance(r, Tensor):
        wide = r.to(torch.float32 if r.device.type == "mps" else torch.float64)
        return wide - torch.as_tensor(_along_rows(tau, tuple(r.shape))).to(wide)
    array = np.asarray(r, dtype=np.float64)
    margins = array - _along_rows(tau, array.shape)
    return margins if margins.ndim else float(margins)


def _along_rows(tau: Floats, shape: tuple[int, ...]) -> Floats:
    """Levels along the first dimension of rewards of this shape."""
    if not tau.ndim:
        return tau
    if shape[:1] != tau.shape:
        raise ThresholdError(f"{len(tau)} prompts for rewards of shape {shape}: give one per row")
    return tau.reshape(-1, *[1] * (len(shape) - 1))
