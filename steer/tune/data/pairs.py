"""Scores to pairs: margins, consensus of rewards, balance of categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer.core.errors import TuneError
from steer.tune.checks import check_enough, check_scores, histogram
from steer.tune.data.config import PairConfig
from steer.tune.data.diversity import most_diverse


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


_REASONS = {
    "ties": "ties",
    "margin": "within the margin",
    "search": "that are not of a search's result over a plain sample",
    "disagreement": "where rewards disagree",
    "identical": "of identical images",
    "prompts": "prompts without a counterpart (all samples tie or fail)",
}


@dataclass
class Table:
    """The scored samples, row by row.

    Attributes:
        ids: Names.
        prompt_ids: (N,).
        scores: (N,) by reward; the first is the main one.
        content: Equal for equal images.
        split: `"train"` or `"test"`.
        category: May be empty.
        searched: (N,) whether a search found the image; None without searches.
        features: Of every prompt, by its number; empty where no setting asks for them.
    """

    ids: list[str]
    prompt_ids: Ints
    scores: dict[str, Floats]
    content: list[str]
    split: list[str]
    category: list[str]
    searched: NDArray[np.bool_] | None = None
    features: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def main(self) -> Floats:
        return next(iter(self.scores.values()))

    def groups(self) -> list[Ints]:
        """The rows of every prompt, in order."""
        order = np.argsort(self.prompt_ids, kind="stable")
        bounds = np.flatnonzero(np.diff(self.prompt_ids[order])) + 1
        return np.split(order, bounds)


@dataclass
class Pairing:
    """Winners and losers as rows of a `Table`, and what became of the rest.

    Attributes:
        winner, loser: (M,).
        margin: (M,) main score of the winner minus the loser's, at least 0; of majorities the share
            of rewards for it minus the share against, in (0, 1].
        dropped: How many candidates were left out, by reason.
    """

    winner: Ints
    loser: Ints
    margin: Floats
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.winner)

    def take(self, rows: Any) -> Pairing:
        """Some of them, in that order."""
        return Pairing(self.winner[rows], self.loser[rows], self.margin[rows], self.dropped)


def make_pairs(table: Table, config: PairConfig, *, balance: bool = False) -> Pairing:
    """Pairs of samples of one prompt that the rewards agree on.

    Args:
        table: Scored samples.
        config: Margins, consensus, how many.
        balance: Keep as many pairs of every category.

    Raises:
        TuneError: Scores that are not finite or all equal, margins of unknown rewards, no pair
            left (with the reasons), or fewer than `count`.
    """
    for name, values in table.scores.items():
        check_scores(values, table.ids, f"reward {name!r}")
    rng = np.random.default_rng([config.seed, 43])
    least = _margins(table, config)
    known = (name for name in _REASONS if name != "search" or config.choose == "winners")
    dropped = dict.fromkeys(known, 0)
    found: list[tuple[int, int, float]] = []
    for rows in table.groups():
        own = _of_prompt(table, rows, least, config, dropped)
        dropped["prompts"] += not own
        if config.choose == "random":
            own = [own[i] for i in rng.permutation(len(own))]
        found += own[: config.per_prompt]
    if not found:
        raise TuneError(
            f"pairs: none is left of {len(table.groups())} prompts; left out were "
            f"{_count_reasons(dropped)}; scores are {histogram(table.main)}: lower margin, leave "
            "consensus out, or draw more samples per prompt"
        )
    winner, loser = np.array([pair[:2] for pair in found], dtype=np.int64).T
    pairs = Pairing(winner, loser, np.array([pair[2] for pair in found]), dropped)
    if balance:
        kinds = [table.category[row] for row in pairs.winner]
        pairs = pairs.take(balance_rows(kinds, rng, "pairs"))
    if config.count is not None:
        way_out = (
            f"left out were {_count_reasons(dropped)}; lower count or margin, or draw more samples"
        )
        check_enough(len(pairs), config.count, "pairs", way_out)
        pairs = pairs.take(_some(table, pairs, config, config.count, rng))
    return pairs


def _some(
    table: Table, pairs: Pairing, config: PairConfig, count: int, rng: np.random.Generator
) -> Ints:
    """Rising places of `count` of the pairs."""
    if config.diversity is None:
        return np.sort(rng.permutation(len(pairs))[:count])
    prompts = table.prompt_ids[pairs.winner]
    return most_diverse(pairs.margin, prompts, table.features, config.diversity, count)


def balance_rows(kinds: Sequence[str], rng: np.random.Generator, what: str) -> Ints:
    """Rising rows that hold every kind equally often, as often as the rarest has.

    Raises:
        TuneError: There is only one kind.
    """
    names, inverse, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise TuneError(
            f"balance: true, and {what} are all of category {str(names[0])!r}: give prompts "
            "categories (a .csv or .jsonl file with a column 'category'), or leave balance out"
        )
    order = rng.permutation(len(kinds))
    kept = [order[inverse[order] == k][: counts.min()] for k in range(len(names))]
    return np.sort(np.concatenate(kept))


def _margins(table: Table, config: PairConfig) -> dict[str, float]:
    """Least difference by reward, in raw scores."""
    main = next(iter(table.scores))
    given = config.margin if isinstance(config.margin, Mapping) else {main: config.margin}
    unknown = [name for name in given if name not in table.scores]
    if unknown:
        raise TuneError(
            f"pairs: margin names {unknown[0]!r}, which is none of the rewards "
            f"{', '.join(table.scores)}"
        )
    scale = {name: _spread(table, name) if config.unit == "spread" else 1.0 for name in given}
    return {name: float(value) * scale[name] for name, value in given.items()}


def _spread(table: Table, name: str) -> float:
    """Standard deviation of a reward about its prompts' means."""
    values = table.scores[name]
    squares = sum(
        float(((own := values[rows]) - own.mean()) @ (own - own.mean())) for rows in table.groups()
    )
    return (squares / len(values)) ** 0.5


def _of_prompt(
    table: Table,
    rows: Ints,
    least: Mapping[str, float],
    config: PairConfig,
    dropped: dict[str, int],
) -> list[tuple[int, int, float]]:
    """(winner, loser, margin) of one prompt's candidates that pass, widest margin first."""
    a, b = (rows[part] for part in np.triu_indices(len(rows), 1))
    main, majority = table.main, config.consensus == "majority"
    deciding = list(table.scores.values()) if majority else [main]
    votes = np.sum([np.sign(values[a] - values[b]) for values in deciding], axis=0)
    turned = votes < 0
    winner, loser = np.where(turned, b, a), np.where(turned, a, b)
    gap = main[winner] - main[loser]
    margin = np.abs(votes) / len(deciding) if majority else gap
    content = np.array(table.content, dtype=object)
    reasons = {
        "identical": content[winner] == content[loser],
        "ties": votes == 0,
        "margin": np.zeros(len(a), dtype=bool),
        "disagreement": np.zeros(len(a), dtype=bool),
    }
    if config.choose == "winners":
        reasons["search"] = ~_found(table, winner, loser)
    for name, values in table.scores.items():
        if config.consensus is True:
            reasons["disagreement"] |= values[winner] <= values[loser]
        if name in least and (least[name] or not majority):
            reasons["margin"] |= values[winner] - values[loser] < least[name]
    open_ = np.ones(len(a), dtype=bool)
    for name, out in reasons.items():
        out = out.astype(bool)
        dropped[name] += int((open_ & out).sum())
        open_ &= ~out
    kept = np.flatnonzero(open_)
    kept = kept[np.lexsort((-gap[kept], -margin[kept]))]
    return [(int(winner[i]), int(loser[i]), float(margin[i])) for i in kept]


def _found(table: Table, winner: Ints, loser: Ints) -> NDArray[np.bool_]:
    """Where a search found the winner and not the loser."""
    if table.searched is None:
        raise TuneError(
            "pairs.choose='winners': the samples were made without a search; make them with "
            "search: {compute: 4, plain: true}"
        )
    return table.searched[winner] & ~table.searched[loser]


def _count_reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {_REASONS[k]}" for k, n in dropped.items() if n) or "nothing"
