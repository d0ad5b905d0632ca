"""What `benchmarks/methods.py` makes of its raw lines, by hand."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from steer.search.method import Method


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> Any:
    """`methods_show` and `methods_arms`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("methods_show"), importlib.import_module("methods_arms")
        for name in ("methods_show", "methods_arms", "methods_settings", "common"):
            sys.modules.pop(name, None)


def _slice(first: int, rewards: list[float], oracle: list[int], caption: int = 0) -> dict[str, Any]:
    return {
        "method": "pool",
        "settings": f"Pool(first={first}, n={len(rewards)})",
        "compute": float(len(rewards)),
        "caption": caption,
        "seed": 0,
        "rewards": rewards,
        "oracle": oracle,
        "fraction": [float(met) for met in oracle],
        "rows": 20.0,
        "seconds": 0.5,
    }


def test_best_of_n_takes_the_first_n_of_the_pool(study: Any) -> None:
    show, _ = study
    parts = [_slice(2, [0.9, 0.1], [1, 0]), _slice(0, [0.3, 0.5], [0, 1])]
    lines = show.best_of_n(show.pools(parts))
    assert [(line["compute"], line["reward"], line["oracle"]) for line in lines] == [
        (1.0, 0.3, False),
        (2.0, 0.5, True),
        (4.0, 0.9, True),
    ]
    assert [line["rows"] for line in lines] == [20.0, 40.0, 80.0]
    assert lines[-1]["seconds"] == 2.0


def test_a_pool_with_a_gap_ends_at_the_gap(study: Any) -> None:
    show, _ = study
    lines = show.best_of_n(show.pools([_slice(0, [0.3], [0]), _slice(2, [0.9], [1])]))
    assert [line["compute"] for line in lines] == [1.0]


def test_differences_are_paired_by_caption_over_seeds(study: Any) -> None:
    show, _ = study
    one = {(0, 0): {"reward": 1.0}, (0, 1): {"reward": 3.0}, (1, 0): {"reward": 5.0}}
    two = {(0, 0): {"reward": 0.0}, (0, 1): {"reward": 0.0}, (1, 0): {"reward": 1.0}}
    assert show.paired(one, two, "reward")["mean"] == 3.0  # (mean of 1 and 3, then 4) / 2
    assert show.paired(one, {(9, 9): {"reward": 0.0}}, "reward") is None


def test_every_method_has_an_arm_within_its_budget(study: Any) -> None:
    _, arms = study
    import steer

    at_eight = {type(method) for _, method, _ in arms.arms(8, 20)}
    exported = {getattr(steer.methods, name) for name in steer.methods.__all__}
    searches = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, Method)}
    elsewhere = {Method, steer.BestOfN, steer.Gate, steer.Budget}
    elsewhere |= {steer.methods.Adaptive, steer.methods.PCNL}
    elsewhere |= {steer.methods.RBF, steer.methods.EvoSearch, steer.methods.DepthFirst}
    assert searches - at_eight == elsewhere
    for compute in (2, 4, 7, 8, 16):
        for name, method, _ in arms.arms(compute, 20):
            again = 20 if isinstance(method, steer.Then) else 0  # its start is finished already
            assert method.cost(20) - again <= 20 * compute, name


def test_committed_results_are_those_of_todays_methods(study: Any) -> None:
    """Whatever a method is called today, its results are found by what they were measured as."""
    _, arms = study
    recorded = importlib.import_module("methods_settings").recorded
    lines = (ROOT / "benchmarks" / "results" / "methods.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    measured = {(row["method"], row["compute"], row["settings"]) for row in rows}
    for compute in (2, 4, 7, 8, 16):
        for name, method, _ in arms.arms(compute, 20):
            assert (name, float(compute), recorded(method)) in measured, (name, compute)


def test_show_writes_the_table_the_answers_and_the_plots(study: Any, tmp_path: Path) -> None:
    show, _ = study
    raw = tmp_path / "methods.jsonl"
    prune = {
        "method": "prune",
        "compute": 2.0,
        "seed": 0,
        "fraction": 1.0,
        "rows": 38.0,
        "decodes": 5.0,
        "reward_calls": 4.0,
        "backwards": 0.0,
        "seconds": 0.8,
    }
    lines = [
        {**prune, "settings": settings, "caption": c, "reward": 0.6 + 0.1 * c, "oracle": True}
        for c in (0, 1)
        for settings in ("old", "new")
    ]
    raw.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pooled = [_slice(0, [0.3, 0.5], [0, 1]), _slice(0, [0.4, 0.5], [0, 0], caption=1)]
    pools = tmp_path / "methods_pool.jsonl"
    pools.write_text("".join(json.dumps(line) + "\n" for line in pooled))
    page = tmp_path / "results" / "study.md"
    page.parent.mkdir()
    page.write_text(f"before\n{show.MARK}\nold\n{show.END}\nafter\n")
    text = show.show(raw, {("prune", 2.0): "new"}, tmp_path)
    assert "| prune 2x | 2 | 1.90 | 100.0% | +50.0 [" in text
    result = json.loads((tmp_path / "methods.json").read_text())
    (found,) = [row for row in result["table"] if row["method"] == "prune"]
    assert found["images"] == 2
    assert found["reward_gain"]["mean"] == pytest.approx(0.15)
    assert {path.name for path in (tmp_path / "images").glob("*.png")} == {
        "methods-reward.png",
        "methods-oracle.png",
    }
    assert page.read_text() == f"before\n{show.MARK}\n\n{text}\n{show.END}\nafter\n"
    again = raw.read_text()
    show.show(raw, {("prune", 2.0): "new"}, tmp_path)
    assert raw.read_text() == again  # best-of-N lines are not doubled
