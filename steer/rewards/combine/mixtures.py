"""From several rewards to one: which class a `combine=` stands for."""

from __future__ import annotations

from collections.abc import Sequence

from steer.rewards.base import Composite, WeightedReward
from steer.rewards.combine.ensemble import (
    Ensemble,
    LowerBound,
    RankEnsemble,
    Standardised,
    WorstRank,
)
from steer.rewards.text import KINDS
from steer.rewards.weights import Term


_RELATIVE: dict[str, type[Ensemble]] = {
    "rank": RankEnsemble,
    "worst": WorstRank,
    "standardise": Standardised,
    "bound": LowerBound,
}


def mixture(
    terms: Sequence[Term],
    names: Sequence[str] | None = None,
    *,
    combine: str = "sum",
    clip_gradient: float | None = None,
) -> Composite:
    """A weighted sum, or a score that compares candidates.

    Args:
        terms: `(reward, weight)` pairs.
        names: How the parts are called; default their own names.
        combine: `"sum"`, `"rank"`, `"worst"`, `"standardise"` or `"bound"`.
        clip_gradient: As in `WeightedReward`; for `"sum"` only.

    Raises:
        ValueError: Another `combine`, `clip_gradient` where there is no gradient, or bad weights.
    """
    if combine not in KINDS:
        raise ValueError(f"combine={combine!r}: one of {', '.join(map(repr, KINDS))}")
    if combine == "sum":
        return WeightedReward(terms, names, clip_gradient=clip_gradient)
    if clip_gradient is not None:
        raise ValueError(
            f"clip_gradient={clip_gradient!r} with combine={combine!r}: scores that compare "
            "candidates have no gradient; use combine='sum'"
        )
    return _RELATIVE[combine](terms, names)
