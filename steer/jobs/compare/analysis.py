"""From scores to findings: means, paired differences, wins, compute, categories, protocol.

Prompts are the units that vary: scores are averaged over seeds first, and every interval is a
bootstrap over prompts (BCa, Efron 1987), of the paired differences where two arms are compared,
since both drew the same prompts from the same noise. Intervals hold one at a time; they are not
widened for the number of comparisons made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steer.core.intervals import estimate


TIE = 1e-6
"""Scores no further apart than this are equal."""

_GROUP = 80


def compare_pair(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Two arms' scores `(P, S)`: the paired difference, and who wins how many prompts."""
    difference = (ours - theirs).mean(1)
    return {
        "difference": estimate(difference).to_dict(),
        "wins": int((difference > TIE).sum()),
        "ties": int((np.abs(difference) <= TIE).sum()),
        "losses": int((difference < -TIE).sum()),
    }


def protocol(scores: np.ndarray, categories: Sequence[str | None]) -> dict[str, Any] | None:
    """The HPS v2 benchmark's own numbers (Wu et al. 2023), or None where the set is not whole.

    Per style the mean of ten group means (groups of 80 consecutive prompts) and their population
    standard deviation, x 100; over all the plain mean. Of several seeds, each is such a benchmark
    and the numbers are averaged.

    Args:
        scores: One arm's `(P, S)`.
        categories: A style per prompt.
    """
    styles = list(dict.fromkeys(categories))
    rows = {style: [i for i, c in enumerate(categories) if c == style] for style in styles}
    if any(len(r) != 10 * _GROUP for r in rows.values()):
        return None
    found: dict[str, Any] = {"average": 100 * float(scores.mean()), "styles": {}}
    for style, index in rows.items():
        groups = scores[index].reshape(-1, _GROUP, scores.shape[1]).mean(1)
        found["styles"][str(style)] = {
            "mean": 100 * float(groups.mean()),
            "std": 100 * float(groups.std(0).mean()),
        }
    return found


def analyse(
    arms: Sequence[str],
    baseline: str,
    scores: Mapping[str, np.ndarray],
    categories: Sequence[str | None],
    *,
    hps: bool = False,
) -> dict[str, Any]:
    """All findings about the scores, JSON-ready.

    Args:
        arms: Their names.
        baseline: The one that the others are held against.
        scores: `(arms, prompts, seeds)` per reward.
        categories: One per prompt.
        hps: The prompts are the HPS v2 benchmark's.
    """
    means = {name: values.mean(2) for name, values in scores.items()}  # (arms, prompts)
    return {
        "means": {
            name: {arm: estimate(v[a]).to_dict() for a, arm in enumerate(arms)}
            for name, v in means.items()
        },
        "pairs": [
            {"arm": arm, "against": other, "reward": name, **compare_pair(v[a], v[b])}
            for name, v in scores.items()
            for b, other in enumerate(arms)
            for a, arm in enumerate(arms)
            if a != b and (other == baseline or (arm != baseline and a > b))
        ],
        "categories": by_category(arms, means, categories),
        "protocol": {
            name: {arm: protocol(v[a], categories) for a, arm in enumerate(arms)}
            for name, v in scores.items()
            if hps and protocol(v[0], categories) is not None
        },
        "disagreement": {name: disagreement(v) for name, v in means.items()},
    }


def by_category(
    arms: Sequence[str], means: Mapping[str, np.ndarray], categories: Sequence[str | None]
) -> dict[str, Any]:
    """Each reward's mean per category and arm, with the number of prompts."""
    names = [name for name in dict.fromkeys(categories) if name is not None]
    if len(names) < 2:
        return {}
    rows = {name: [i for i, c in enumerate(categories) if c == name] for name in names}
    return {
        name: {
            "prompts": len(index),
            "means": {
                reward: {arm: float(v[a, index].mean()) for a, arm in enumerate(arms)}
                for reward, v in means.items()
            },
        }
        for name, index in rows.items()
    }


def disagreement(means: np.ndarray) -> list[int]:
    """Prompts by how far apart the arms' scores `(arms, prompts)` lie, the furthest first."""
    return np.argsort(-np.ptp(means, axis=0), kind="stable").tolist()


def costs(records: Sequence[Sequence[Mapping[str, Any]]], plain_rows: int) -> list[dict[str, Any]]:
    """What an image cost per arm, on average over its records.

    Args:
        records: Per arm, as the store keeps them.
        plain_rows: Latents that the comparison's plain call denoises.
    """
    found = []
    for mine in records:
        ledgers = [record["ledger"] for record in mine]

        def mean(values: Sequence[float]) -> float:
            return math.fsum(values) / len(values)

        rows = mean([ledger["equivalent_rows"] for ledger in ledgers])
        found.append(
            {
                "multiple": rows / plain_rows,
                "denoiser_rows": mean([g["denoiser_rows"] for g in ledgers]),
                "backward_rows": mean([g["backward_rows"] for g in ledgers]),
                "cfg_rows": max(g["cfg_rows"] for g in ledgers),
                "decodes": mean([g["decodes"] for g in ledgers]),
                "reward_calls": mean([g["reward_calls"] for g in ledgers]),
                "seconds": mean([g["seconds"].get("total", 0.0) for g in ledgers]),
                "peak_bytes": max(g["peak_bytes"] for g in ledgers),
            }
        )
    return found
