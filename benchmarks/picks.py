"""What helps when more candidates stop helping: picks and scores on pools of the bundled world.

    python benchmarks/picks_pool.py --captions 80 --candidates 48 --seed 5 --out build/picks
    python benchmarks/picks.py --pool build/picks --seed 5

Training captions, eight steps: candidates that the reward has not been trained to tell apart. Of
every caption's pool, random subsets of n candidates; a score and a pick choose one of each, and the
oracle says whether it is right. Sets of four are chosen from the same subsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import common
import numpy as np
import torch
from picks_pool import GUIDANCE, STEPS, load
from scorer_auc import caption_auc
from tqdm.auto import tqdm

import steer
from steer.rewards import Augmented
from steer.rewards.combine.ensemble import LowerBound, RankEnsemble, Standardised, WorstRank
from steer.search.picks import Best, Candidates, Diverse, Pessimistic, Pick, Quantile, SoftBest
from steer.search.picks.diverse import colour_layout


SIZES = (4, 8, 16, 32, 48)
PICKS: tuple[Pick, ...] = (
    Best(),
    Quantile(n_eff=8),
    Quantile(n_eff=16),
    SoftBest(0.1),
    SoftBest(0.3),
    Pessimistic(0.3),
    Pessimistic(1.0),
)
SETS: tuple[Pick, ...] = (Best(), *(Diverse(lam) for lam in (0.1, 0.2, 0.3, 0.5, 1.0)))
COUNT = 4


@dataclass(frozen=True, eq=False)
class Pool:
    """One caption's candidates.

    Attributes:
        prompt: The caption.
        met: Whether the oracle finds all met, `(n,)`.
        scores: `(n,)` by name.
        layout: The features that `Diverse` uses, `(n, d)`.
        meaning: Unit image features of the contrastive model, which no pick sees, `(n, d)`.
    """

    prompt: str
    met: np.ndarray
    scores: dict[str, np.ndarray]
    layout: np.ndarray
    meaning: np.ndarray


def pools(folder: Path, seed: int, device: str) -> Iterator[Pool]:
    """Every caption's pool, scored."""
    shapes, contrast = (steer.reward(name, device=device) for name in ("shapes", "shapes-clip"))
    augmented, encoder = Augmented(shapes, 8), cast(Any, contrast)
    for prompt, images, met, _ in tqdm(list(load(folder, seed))):
        with torch.no_grad():
            changed = [shapes(augmented.pictures(images, k), prompt) for k in range(augmented.n)]
            each = torch.stack(changed).double().numpy()
            scores = {"shapes": each[0], "augmented": each.mean(0), "augmented 4": each[:4].mean(0)}
            scores["contrast"] = contrast(images, prompt).double().numpy()
            meaning = encoder.embed(images.to(device)).double().cpu().numpy()
        yield Pool(prompt, met, scores, colour_layout(images).double().numpy(), meaning)


def combined(kind: Any, first: str, second: str) -> Callable[[Pool, np.ndarray], np.ndarray]:
    """The score of an ensemble of two, among the candidates of a subset."""
    ensemble = kind([(steer.reward(_nothing), 1.0), (steer.reward(_nothing), 1.0)], ["a", "b"])

    def score(pool: Pool, rows: np.ndarray) -> np.ndarray:
        parts = {"a": pool.scores[first][rows], "b": pool.scores[second][rows]}
        return ensemble.combine({k: torch.from_numpy(v) for k, v in parts.items()}).double().numpy()

    return score


def single(name: str) -> Callable[[Pool, np.ndarray], np.ndarray]:
    """The score of one reward."""
    return lambda pool, rows: pool.scores[name][rows]


def _nothing(images: Any, prompts: Any) -> Any:
    raise NotImplementedError("its scores are recorded")


SCORES: dict[str, Callable[[Pool, np.ndarray], np.ndarray]] = {
    "shapes": single("shapes"),
    "contrast": single("contrast"),
    "augmented": single("augmented"),
    "augmented 4": single("augmented 4"),
    "rank": combined(RankEnsemble, "shapes", "contrast"),
    "standardise": combined(Standardised, "shapes", "contrast"),
    "worst": combined(WorstRank, "shapes", "contrast"),
    "bound": combined(LowerBound, "shapes", "contrast"),
    "rank, augmented": combined(RankEnsemble, "augmented", "contrast"),
}


def subsets(size: int, pool: int, draws: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of a subset, and a uniform number for each: the same for every pick and score."""
    rng = np.random.default_rng([size, 31])
    for _ in range(draws):
        yield rng.permutation(pool)[:size], rng.uniform(1e-12, 1, size)


def rate(pool: Pool, score: Any, pick: Pick, size: int, draws: int) -> float:
    """How often the chosen candidate is right."""
    right = 0
    for rows, uniforms in subsets(size, len(pool.met), draws):
        (row,) = pick.choose(Candidates(score(pool, rows), uniforms), 1)
        right += bool(pool.met[rows[row]])
    return right / draws


def group(pool: Pool, score: Any, pick: Pick, size: int, draws: int) -> list[float]:
    """Of sets of four: the share that is right, whether one is, and how unlike they are."""
    found = []
    for rows, uniforms in subsets(size, len(pool.met), draws):
        candidates = Candidates(score(pool, rows), uniforms, pool.layout[rows])
        chosen = rows[pick.choose(candidates, COUNT)]
        pairs = [(pool.meaning[a] * pool.meaning[b]).sum() for a, b in combinations(chosen, 2)]
        layout = [
            np.linalg.norm(pool.layout[a] - pool.layout[b]) for a, b in combinations(chosen, 2)
        ]
        met = pool.met[chosen]
        found.append((met.mean(), met.any(), 1 - np.mean(pairs), np.mean(layout)))
    return np.mean(found, axis=0).tolist()


def table(found: list[Pool], draws: int) -> list[dict[str, Any]]:
    """Oracle rates by score, pick and number of candidates, and what they gain over the plain."""
    lines, plain = [], {}
    single_picks = [(name, pick) for name in SCORES for pick in PICKS]
    for name, pick in tqdm(single_picks):
        if name not in ("shapes", "augmented", "rank") and not isinstance(pick, Best):
            continue
        for size in SIZES:
            rates = np.array([rate(p, SCORES[name], pick, size, draws) for p in found])
            plain.setdefault(size, rates)
            line = {"score": name, "pick": repr(pick), "n": size, "right": common.interval(rates)}
            line["gain"] = common.interval(rates - plain[size])
            line["by_caption"] = np.round(rates, 4).tolist()
            lines.append(line)
    return lines


def sets(found: list[Pool], draws: int) -> list[dict[str, Any]]:
    """What sets of four are like."""
    lines = []
    for name in ("shapes", "augmented"):
        for pick in SETS:
            for size in (16, 48):
                values = [group(p, SCORES[name], pick, size, draws) for p in found]
                columns = zip(
                    ("right", "any", "unlike", "layout"), zip(*values, strict=True), strict=True
                )
                line = {key: common.interval(column) for key, column in columns}
                lines.append({"score": name, "pick": repr(pick), "n": size, "count": COUNT, **line})
    return lines


def aucs(found: list[Pool]) -> dict[str, Any]:
    """AUC within captions of every score."""
    result = {}
    for name, score in SCORES.items():
        each = [caption_auc(score(p, np.arange(len(p.met))), p.met) for p in found]
        known = [auc for auc in each if auc is not None]
        result[name] = {**common.interval(known), "captions": len(known)}
    return result


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    found = list(pools(args.pool, args.seed, args.device))
    content = {
        "study": "picks",
        **common.provenance(),
        "sampler": f"DDIM, {STEPS} steps, guidance {GUIDANCE}",
        "captions": len(found),
        "candidates": len(found[0].met),
        "draws": args.draws,
        "all_met": common.interval([float(p.met.mean()) for p in found]),
        "auc": aucs(found),
        "picks": table(found, args.draws),
        "sets": sets(found, args.draws),
    }
    common.write_json(args.out or common.RESULTS / f"picks_{common.hardware()}.json", content)


if __name__ == "__main__":
    main()
