"""Best of a fixed n, and best of as many as it takes: candidates spent at equal quality.

    python benchmarks/picks_pool.py --captions 80 --candidates 48 --seed 5 --out build/picks
    python benchmarks/adaptive.py --pool build/picks --seed 5

Training captions, eight steps. Every caption's candidates come in random orders; `Adaptive` is
replayed on them by its own rule. Half of the captions are pilots, which make the prior; the other
half is measured, and then the halves change places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from picks_pool import GUIDANCE, STEPS, load
from tqdm.auto import tqdm

import steer
from steer.methods import Adaptive
from steer.rewards import Prior


PILOTS = 8  # candidates of each pilot caption
TARGETS = (4, 8, 16, 32)
PRICES = tuple(float(p) for p in np.geomspace(0.5, 0.001, 28))
SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
CALL = 20  # prompts of one call, where they share or are a prior for each other


@dataclass(frozen=True, eq=False)
class Pool:
    """One caption's candidates: rewards `(n,)`, and whether the oracle finds all met `(n,)`."""

    rewards: np.ndarray
    met: np.ndarray


@dataclass(frozen=True)
class Arm:
    """One way to run `Adaptive`: by price or mean size, with a prior or without, so many a call."""

    make: Callable[[float, Prior, int], Adaptive]
    values: Sequence[float]
    call: int = 1


ARMS = {
    "prior": Arm(lambda c, prior, most: Adaptive(most, c, prior, least=1, batch=1), PRICES),
    "prior, defaults": Arm(lambda c, prior, most: Adaptive(most, c, prior), PRICES),
    "prior, batch=4": Arm(lambda c, prior, most: Adaptive(most, c, prior, batch=4), PRICES),
    "Gaussian rewards": Arm(
        lambda c, prior, most: Adaptive(most, c, gaussian(prior), least=1, batch=1), PRICES
    ),
    "prior of the call": Arm(lambda c, _, most: Adaptive(most, c, least=3, batch=1), PRICES, CALL),
    "no prior": Arm(lambda c, _, most: Adaptive(most, c, batch=1), PRICES),
    "shared, prior": Arm(
        lambda n, prior, _: Adaptive(int(n), 0, prior, least=1, batch=1, share=True), SIZES, CALL
    ),
    "shared, prior of the call": Arm(
        lambda n, _, __: Adaptive(int(n), 0, least=min(3, int(n)), batch=1, share=True), SIZES, CALL
    ),
}


def gaussian(prior: Prior) -> Prior:
    """A prior without the map to normal scores, of about the same mean and spread."""
    mean = float(prior.outlook.scores.rewards([prior.mean])[0])
    return Prior(mean, prior.unit, prior.weight, prior.freedom)


def pools(folder: Path, seed: int, device: str) -> list[Pool]:
    """Every caption's pool, scored by the bundled reward."""
    reward, found = steer.reward("shapes", device=device), []
    for prompt, images, met, _ in tqdm(list(load(folder, seed))):
        with torch.no_grad():
            scores = reward(images, [prompt] * len(images))
        found.append(Pool(scores.double().numpy(), met))
    return found


def replay(method: Adaptive, call: Sequence[Pool], orders: Sequence[np.ndarray]) -> list[int]:
    """How many candidates `method` draws for every caption of one call."""
    size = len(orders[0])
    rule = method.rule()
    drawn = dict.fromkeys(range(len(call)), method.populations[0])
    first = True
    while True:
        seen = {i: call[i].rewards[orders[i][: drawn[i]]].tolist() for i in drawn}
        if first:
            rule.learn(seen)
        first = False
        counts = {i: min(count, size - drawn[i]) for i, count in rule.more(seen, drawn).items()}
        if not any(counts.values()):
            return list(drawn.values())
        drawn |= {i: drawn[i] + count for i, count in counts.items()}


def shuffles(found: Sequence[Pool], draws: int) -> np.ndarray:
    """Random orders of every caption's candidates, `(captions, draws, n)`; alike for all arms."""
    rng = np.random.default_rng(17)
    return np.array([[rng.permutation(len(p.met)) for _ in range(draws)] for p in found])


def chosen(found: Sequence[Pool], orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reward and verdict of the best of the first k + 1, `(captions, draws, n)` each."""
    rewards = np.array([p.rewards[o] for p, o in zip(found, orders, strict=True)])
    met = np.array([p.met[o] for p, o in zip(found, orders, strict=True)])
    best = np.maximum.accumulate(rewards, axis=-1)
    where = np.where(rewards >= best, np.arange(rewards.shape[-1]), 0)
    place = np.maximum.accumulate(where, axis=-1)
    return best, np.take_along_axis(met, place, -1).astype(float)


def folds(count: int) -> list[tuple[list[int], list[int]]]:
    """Captions of the pilots, and those that are measured: both halves in turn."""
    order = np.random.default_rng(3).permutation(count).tolist()
    half = count // 2
    return [(order[:half], order[half:]), (order[half:], order[:half])]


def candidates(arm: Arm, found: Sequence[Pool], orders: np.ndarray) -> np.ndarray:
    """How many candidates every caption draws, `(values, captions, draws)`."""
    values, draws = len(arm.values), orders.shape[1]
    counts = np.zeros((values, len(found), draws), dtype=int)
    for pilots, measured in folds(len(found)):
        prior = Prior.fit({str(i): found[i].rewards[:PILOTS] for i in pilots})
        for v, value in enumerate(arm.values):
            method = arm.make(value, prior, orders.shape[-1])
            for draw in range(draws):
                for begin in range(0, len(measured), arm.call):
                    call = measured[begin : begin + arm.call]
                    own = [found[i] for i in call]
                    counts[v, call, draw] = replay(method, own, list(orders[call, draw]))
    return counts


def spent_at(targets: np.ndarray, quality: np.ndarray, spent: np.ndarray) -> np.ndarray:
    """Mean candidates at which an arm's mean quality reaches the targets; NaN where it does not.

    Args:
        targets: Mean qualities.
        quality, spent: Means by price or size, `(values,)` each.
    """
    order = np.argsort(spent)
    rising = np.maximum.accumulate(quality[order])
    known = np.concatenate([[True], np.diff(rising) > 0])
    return np.interp(targets, rising[known], spent[order][known], right=np.nan, left=np.nan)


def shares(
    fixed: np.ndarray, quality: np.ndarray, spent: np.ndarray, resamples: int = 2000
) -> list[dict[str, Any]]:
    """Candidates at the quality of best of n, as a share of n, with intervals over captions.

    Args:
        fixed: Quality of best of 1, 2, ..., `(captions, n)`.
        quality, spent: By price or size, `(values, captions)`.
    """
    places = np.array(TARGETS) - 1
    rng, captions = np.random.default_rng(0), fixed.shape[0]

    def of(rows: np.ndarray) -> np.ndarray:
        curve = np.maximum.accumulate(fixed[rows].mean(0))
        targets = curve[places]
        least = np.searchsorted(curve, targets) + 1  # fewest that have this quality
        found = spent_at(targets, quality[:, rows].mean(1), spent[:, rows].mean(1))
        return found / np.minimum(least, TARGETS)

    whole = of(np.arange(captions))
    again = np.array([of(rng.integers(0, captions, captions)) for _ in range(resamples)])
    lines = []
    for k, n in enumerate(TARGETS):
        reached = again[:, k][np.isfinite(again[:, k])]
        low, high = np.quantile(reached, (0.025, 0.975)) if len(reached) else (np.nan, np.nan)
        numbers = {"share": whole[k], "low": low, "high": high}
        lines.append({"n": n} | {key: _rounded(value) for key, value in numbers.items()})
    return lines


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def known_law(found: Sequence[Pool], orders: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Candidates of a rule that knows every caption's rewards: the floor, `(values, ...)`."""
    prices = np.geomspace(0.05, 1e-5, 28)
    stop = np.zeros((len(prices), *orders.shape[:2]), dtype=int)
    for i, pool in enumerate(found):
        gains = np.maximum(pool.rewards[None, None] - best[i][..., None], 0).mean(-1)
        gains[:, -1] = -1
        for v, price in enumerate(prices):
            stop[v, i] = (gains <= price).argmax(-1) + 1
    return stop


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--out", type=Path)
    args = common.parsed(parser)
    found = pools(args.pool, args.seed, args.device)
    orders = shuffles(found, args.draws)
    best, met = chosen(found, orders)
    lines = []
    for name in tqdm([*ARMS, "known law"]):
        known = name == "known law"
        counts = known_law(found, orders, best) if known else candidates(ARMS[name], found, orders)
        at = counts[..., None] - 1
        reward = np.array([np.take_along_axis(best, a, -1)[..., 0].mean(1) for a in at])
        oracle = np.array([np.take_along_axis(met, a, -1)[..., 0].mean(1) for a in at])
        spent = counts.mean(-1)
        values = [None] * len(counts) if known else ARMS[name].values
        lines.append(
            {
                "arm": name,
                "at_equal_reward": shares(best.mean(1), reward, spent),
                "at_equal_oracle": shares(met.mean(1), oracle, spent),
                "by_value": [
                    {
                        "value": value,
                        "candidates": common.interval(spent[v]),
                        "reward": common.interval(reward[v]),
                        "oracle": common.interval(oracle[v]),
                        "most": int(counts[v].max()),
                    }
                    for v, value in enumerate(values)
                ],
            }
        )
    content = {
        "study": "adaptive",
        **common.provenance(),
        "sampler": f"DDIM, {STEPS} steps, guidance {GUIDANCE}",
        "captions": len(found),
        "candidates": orders.shape[-1],
        "pilots": PILOTS,
        "draws": args.draws,
        "call": CALL,
        "fixed": [
            {
                "n": n,
                "reward": common.interval(best[..., n - 1].mean(1)),
                "oracle": common.interval(met[..., n - 1].mean(1)),
            }
            for n in (1, 2, *TARGETS, orders.shape[-1])
        ],
        "arms": lines,
    }
    common.write_json(args.out or common.RESULTS / f"adaptive_{common.hardware()}.json", content)


if __name__ == "__main__":
    main()
