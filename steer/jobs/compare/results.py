"""The findings of a finished comparison, as one JSON value and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from steer.core.errors import ComparisonError
from steer.core.files.atomic import write_json
from steer.core.files.tables import write_table
from steer.core.intervals import estimate
from steer.jobs.compare import analysis
from steer.jobs.compare.config import Comparison
from steer.jobs.compare.prompts import PromptSet
from steer.jobs.compare.scoring import DIVERSITY, diversity_names, gather
from steer.jobs.compare.store import IMAGES, Store, Unit, disk


FORMAT = "steer-comparison-results/1"
RESULTS = "results.json"


def collect(
    store: Store, comparison: Comparison, prompts: PromptSet, names: Sequence[str], command: str
) -> dict[str, Any]:
    """Everything that the page and the tables show, JSON-ready.

    Raises:
        ComparisonError: Images or scores are missing, or an arm's weights changed on the way.
    """
    arms = [arm.name for arm in comparison.arms]
    records = [_records(store, comparison, prompts, arm) for arm in arms]
    scores = {name: gather(store, comparison, prompts, name) for name in names}
    categories = [prompt.category for prompt in prompts.prompts]
    found = analysis.analyse(
        arms, str(comparison.baseline), scores, categories, hps=prompts.name == "hpsv2"
    )
    spread = {n: gather(store, comparison, prompts, n) for n in diversity_names(comparison)}
    cost = analysis.costs(records, _plain_rows(comparison, records))
    return {
        "format": FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": store.setup()["versions"],
        "configuration": comparison.to_dict(),
        "prompts": {
            "name": prompts.name,
            "source": prompts.source,
            "count": len(prompts.prompts),
            "sha256": prompts.sha256,
        },
        "rewards": [
            {
                "name": name,
                "optimised": name == comparison.reward,
                "scale": 1.0 if name == comparison.reward and comparison.scale else scale_of(name),
            }
            for name in names
        ],
        "arms": [
            {
                "name": arm.name,
                "label": arm.label or arm.name,
                "differs": list(arm.differs),
                "methods": sorted({r["method"] for r in records[a]}),
                "denoiser": records[a][0]["denoiser"],
                "weights": records[a][0]["weights"],
                "cost": cost[a],
                "diversity": {
                    name.removeprefix(DIVERSITY): estimate(values[a]).to_dict()
                    for name, values in spread.items()
                },
            }
            for a, arm in enumerate(comparison.arms)
        ],
        **found,
        "scores": {name: values.tolist() for name, values in scores.items()},
    }


def write(
    store: Store, comparison: Comparison, prompts: PromptSet, found: Mapping[str, Any]
) -> None:
    """`results.json`, `scores.csv` (a row per image), `arms.csv` and `pairs.csv`.

    Raises:
        FolderError: The disk is full.
    """
    with disk():
        write_json(store.folder / RESULTS, found)
        write_table(store.folder / "scores.csv", score_rows(store, comparison, prompts, found))
        write_table(store.folder / "arms.csv", arm_rows(found))
        write_table(store.folder / "pairs.csv", pair_rows(found))


def scale_of(reward: str) -> float:
    """What a reward is multiplied with for people: 100 for HPS v2, as its benchmark does."""
    return 100.0 if reward.startswith("hpsv2") and "=" not in reward else 1.0


def score_rows(
    store: Store, comparison: Comparison, prompts: PromptSet, found: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row per image: what it is, its scores and its cost."""
    rows = []
    for a, arm in enumerate(comparison.arms):
        for p, prompt in enumerate(prompts.prompts):
            for s, seed in enumerate(comparison.seeds):
                unit = Unit(arm.name, p, seed)
                record = store.record(unit) or {}
                ledger = record.get("ledger") or {}
                rows.append(
                    {
                        "arm": arm.name,
                        "index": p,
                        "prompt": prompt.text,
                        "category": prompt.category or "",
                        "seed": seed,
                        "image": f"{IMAGES}/{arm.name}/{unit.name}.png",
                        **{name: v[a][p][s] for name, v in found["scores"].items()},
                        "equivalent_rows": ledger.get("equivalent_rows"),
                        "decodes": ledger.get("decodes"),
                        "reward_calls": ledger.get("reward_calls"),
                        "seconds": (ledger.get("seconds") or {}).get("total"),
                    }
                )
    return rows


def arm_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per arm: means with intervals, cost, diversity."""
    rows = []
    for arm in found["arms"]:
        row = {"arm": arm["name"], "label": arm["label"], "denoiser": arm["denoiser"]}
        for name, means in found["means"].items():
            values = means[arm["name"]]
            row |= {
                name: values["mean"],
                f"{name} low": values["low"],
                f"{name} high": values["high"],
            }
        for name, values in arm["diversity"].items():
            row[f"diversity {name}"] = values["mean"]
        rows.append({**row, **arm["cost"]})
    return rows


def pair_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per reward and pair of arms: the paired difference with its interval, and wins."""
    keys = ("arm", "against", "reward", "wins", "ties", "losses")
    return [
        {
            **{key: pair[key] for key in keys[:3]},
            "difference": pair["difference"]["mean"],
            "low": pair["difference"]["low"],
            "high": pair["difference"]["high"],
            **{key: pair[key] for key in keys[3:]},
        }
        for pair in found["pairs"]
    ]


def _records(
    store: Store, comparison: Comparison, prompts: PromptSet, arm: str
) -> list[dict[str, Any]]:
    units = [Unit(arm, p, s) for p in range(len(prompts.prompts)) for s in comparison.seeds]
    found = [store.record(unit) for unit in units]
    whole = [record for record in found if record is not None]
    if len(whole) < len(units):
        raise ComparisonError(
            f"arm {arm!r}: {len(units) - len(whole)} images are missing; run steer compare again"
        )
    weights = {record["weights"] for record in whole}
    if len(weights) > 1:
        raise ComparisonError(
            f"arm {arm!r}: its images were drawn with different weights ({weights}): the "
            "checkpoint changed between runs; start again in another folder"
        )
    return whole


def _plain_rows(comparison: Comparison, records: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """What the comparison's plain call denoises: the steps of an arm that differs in none."""
    for arm, mine in zip(comparison.arms, records, strict=True):
        if not {"steps", "scheduler"} & set(arm.differs):
            return int(mine[0]["steps"])
    return int(records[0][0]["steps"])


def as_array(found: Mapping[str, Any], reward: str) -> np.ndarray:
    """A reward's scores from the results, `(arms, prompts, seeds)`."""
    return np.array(found["scores"][reward], dtype=np.float64)
