"""From several rewards to one: which class a `combine=` stands for, and ensembles as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steer.core.types import Reward
from steer.rewards.combine.weighted import Composite, WeightedReward


KINDS = ("sum", "rank", "standardise")


def mixture(
    terms: Sequence[tuple[Reward, float]],
    names: Sequence[str] | None = None,
    *,
    combine: str = "sum",
    clip_gradient: float | None = None,
) -> Composite:
    """A weighted sum, a rank ensemble or a sum of z-scores.

    Args:
        terms: `(reward, weight)` pairs.
        names: How the parts are called; default their own names.
        combine: `"sum"`, `"rank"` or `"standardise"`.
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
    from steer.rewards.combine.ensemble import RankEnsemble, Standardised

    return (RankEnsemble if combine == "rank" else Standardised)(terms, names)


def read_mixture(text: str) -> tuple[str, dict[str, float]] | None:
    """`"rank(hpsv2,pickscore=0.5)"` as `("rank", {"hpsv2": 1.0, "pickscore": 0.5})`.

    Returns:
        The kind and the weights; `None` where the text is no such call.

    Raises:
        ValueError: A part without a name, or one that is named twice.
    """
    found = re.fullmatch(rf"\s*({'|'.join(KINDS)})\((.*)\)\s*", text)
    if found is None:
        return None
    weights: dict[str, float] = {}
    for part in found[2].split(","):
        name, weight = _named_weight(part.strip())
        if not name or name in weights:
            what = f"{name!r} appears twice" if name else "a part has no name"
            raise ValueError(f"reward={text!r}: {what}; write for example 'rank(hpsv2,pickscore)'")
        weights[name] = weight
    return found[1], weights


def _named_weight(part: str) -> tuple[str, float]:
    """A name and its weight; what follows the last `=` is a weight only if it is a number."""
    name, _, weight = part.rpartition("=")
    try:
        return name.strip(), float(weight)
    except ValueError:
        return part, 1.0
