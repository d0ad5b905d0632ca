"""The study of tuned checkpoints: equal budgets, arms that exist, tables by hand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from steer.tune import TuneConfig


ROOT = Path(__file__).parents[2]
MODULES = ("tuned", "tuned_show", "tuned_or_steered", "tuned_ship")


@pytest.fixture(scope="module")
def study() -> Iterator[dict[str, Any]]:
    """The study's modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield {name: importlib.import_module(name) for name in MODULES}
        for name in (*MODULES, "methods_show", "methods_arms", "common"):
            sys.modules.pop(name, None)


def test_every_objective_has_the_same_budget_and_differs_in_nothing_else() -> None:
    shared = set()
    for path in sorted((ROOT / "examples" / "tuned").glob("*.yaml")):
        config = TuneConfig.load(path)
        images = config.batch * (2 if config.objective.pairs else 1)
        own = config.to_dict()
        for name in ("batch", "data", "objective", "out", "siblings"):
            own.pop(name)
        assert images == 32 and config.out == f"runs/tuned/{path.stem}"
        shared.add(yaml.safe_dump(own))
    assert len(shared) == 1


def test_runs_are_of_settings_that_exist_and_the_comparison_has_them_all(
    study: dict[str, Any],
) -> None:
    runs = study["tuned"].ALL
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    for run in runs:
        folder = "tuned_long" if run.long else "tuned"
        assert (ROOT / "examples" / folder / f"{run.objective}.yaml").is_file()
    assert set(study["tuned_ship"].SHIPPED) <= set(names)


def test_long_settings_are_three_times_the_updates_of_the_same_objective() -> None:
    for path in sorted((ROOT / "examples" / "tuned_long").glob("*.yaml")):
        long, short = (
            TuneConfig.load(ROOT / "examples" / folder / path.name).to_dict()
            for folder in ("tuned_long", "tuned")
        )
        assert long["out"] == f"runs/tuned/{path.stem}-long"
        assert long.pop("steps") == 3 * short.pop("steps")
        for name in ("out", "lr", "warmup", "ema", "checkpoint_every"):
            long.pop(name)
            short.pop(name)
        assert long == short


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3, 3)])
def test_a_cut_adapter_is_the_best_one_of_its_rank(
    study: dict[str, Any], shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(8, *shape[1:], generator=generator)
    up = torch.randn(shape[0], 8, *(1,) * (len(shape) - 2), generator=generator)
    update = (up.flatten(1) @ down.flatten(1)).double().numpy()
    spectrum = np.linalg.svd(update, compute_uv=False)
    for rank in (1, 3, 8):
        small, tall, left = study["tuned_ship"].cut(down, up, rank)
        assert small.shape == (rank, *down.shape[1:]) and tall.shape == (12, rank, *up.shape[2:])
        error = np.linalg.norm(update - (tall.flatten(1) @ small.flatten(1)).numpy())
        assert error == pytest.approx(np.linalg.norm(spectrum[rank:]), abs=1e-4)
        assert left == pytest.approx((spectrum[:rank] ** 2).sum() / (spectrum**2).sum(), abs=1e-6)


FOUND: dict[str, Any] = {
    "arms": [
        {
            "name": name,
            "label": name,
            "denoiser": "RLG(2.0)" if "rlg" in name else name,
            "cost": {"multiple": cost, "seconds": 0.5},
        }
        for name, cost in (("base", 1.0), ("base-2x", 2.0), ("dpo", 1.0), ("dpo-rlg", 2.0))
    ],
    "means": {
        key: {name: {"mean": 0.5} for name in ("base", "base-2x", "dpo", "dpo-rlg")}
        for key in ("shapes", "oracle-all")
    },
    "scores": {
        key: [[[0.0], [0.0]], [[0.0], [1.0]], [[1.0], [0.0]], [[1.0], [1.0]]]
        for key in ("shapes", "oracle-all")
    },
}


def test_the_table_of_checkpoints_by_hand(study: dict[str, Any], tmp_path: Path) -> None:
    shown = study["tuned_show"]
    met = {"base": [0, 0, 0, 1], "dpo": [0, 1, 1, 1], "poly-dpo": [1, 1, 1, 1]}
    lines = [
        {
            "name": name,
            "caption": k // 2,
            "seed": k % 2,
            "reward": 0.5 + 0.1 * verdict,
            "oracle": bool(verdict),
            "diversity": 0.25,
        }
        for name, verdicts in met.items()
        for k, verdict in enumerate(verdicts)
    ]
    runs = [
        {"name": "dpo", "noise": 0.0, "drift": 0.0017, "weight": 2.0},
        {"name": "poly-dpo", "noise": 0.0, "drift": 0.01, "weight": 0.5},
    ]
    table = shown.tabulate(lines, runs)
    assert [row["oracle"]["mean"] for row in table] == [0.25, 0.75, 1.0]
    assert table[1]["oracle_gain"]["mean"] == 0.5 and table[1]["images"] == 4
    assert table[1]["reward_gain"]["mean"] == pytest.approx(0.05)
    asked = shown.questions(lines, runs)
    assert [(one, two, gain["mean"]) for one, two, gain in asked] == [("poly-dpo", "dpo", 0.25)]
    text = shown.markdown(table, asked)
    assert "| dpo | 0% | 2 | 2 | 75.0% | +50.0 [+50.0, +50.0] | 0.5750 |" in text
    assert "| poly-dpo minus dpo | +25.0 [" in text
    shown.plot(table, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_arm_is_held_against_the_base_at_its_own_compute(
    study: dict[str, Any], tmp_path: Path
) -> None:
    shown = study["tuned_or_steered"]
    arms = FOUND["arms"]
    assert [shown.rival(arm, arms) for arm in arms] == [None, None, "base", "base-2x"]
    gain = shown.pooled_gain(FOUND, ["dpo-rlg"], ["base-2x"], "shapes")
    assert gain["mean"] == pytest.approx(0.5) and gain["low"] == 0
    assert [shown.model(arm) for arm in arms] == ["base", "base", "dpo", "dpo"]
    assert shown.markdown(FOUND).count("\n") == 2 + len(arms)
    both = shown.pooled_gain(FOUND, ["dpo", "dpo-rlg"], ["base", "base-2x"], "shapes")
    assert both["mean"] == pytest.approx(0.5)  # captions: (1 + 1 - 0 - 0) / 2, (0 + 1 - 0 - 1) / 2
    asked = shown.questions(FOUND).splitlines()[2:]
    assert asked[0].startswith("| dpo-rlg minus dpo | +50.0 [") and len(asked) == 2
    shown.draw(FOUND, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
