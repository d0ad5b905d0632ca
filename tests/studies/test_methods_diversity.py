"""What `benchmarks/methods_diversity.py` measures and makes of its raw lines, by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch


ROOT = Path(__file__).parents[2]
STUDY = ("methods_diversity", "methods", "methods_show", "methods_arms", "methods_settings")
MODULES = (*STUDY, "common")


@pytest.fixture(scope="module")
def study() -> Any:
    outer = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("methods_diversity")
        for name in MODULES:
            sys.modules.pop(name, None)
    sys.modules.update(outer)  # `methods` is a folder of tests as well


def test_every_method_of_the_study_is_there_with_all_seeds(study: Any) -> None:
    plan = study.plan(32)
    names = [units[0].name for units in plan if units[0].batch == 0]
    assert len(set(names)) == len(names) == len(plan) // 2
    assert {"plain call", "best-of-n", "prune", "smc", "tree", "noise optimisation"} <= set(names)
    for units in plan:
        assert [unit.seed for unit in units] == [0, 1, 2]
        assert len({(unit.name, unit.batch, repr(unit.method)) for unit in units}) == 1


def test_distances_are_between_the_seeds_of_one_caption(study: Any) -> None:
    """Black, black, white: of three pairs two are as far apart as can be."""
    images = torch.zeros(6, 3, 32, 32)
    images[2] = 1.0
    images[3:] = 0.25
    encoder = SimpleNamespace(
        images=lambda x: torch.stack([x.mean((1, 2, 3)), 1 - x[:, 0, 0, 0]], 1)
    )
    clip = SimpleNamespace(encoder=encoder, preprocess=lambda x: x)
    features, pixels = study.apart(images, clip)
    assert features == pytest.approx([2 / 3, 0.0], abs=1e-6)
    assert pixels == pytest.approx([2 / 3, 0.0], abs=1e-6)


def test_the_table_by_hand(study: Any) -> None:
    arms = {units[0].name: study.recorded(units[0].method) for units in study.plan(16)}
    lines = [
        {
            "method": name,
            "settings": arms[name],
            "caption": caption,
            "features": 0.1 + gain,
            "pixels": 0.2 + gain + 0.1 * caption,
        }
        for name, gain in (("best-of-n", 0.0), ("prune", 0.05))
        for caption in (0, 1)
    ]
    stale = {**lines[-1], "settings": "Prune(of another day)", "features": 9.0}
    text = study.markdown([*lines, stale])
    prune, best = text.splitlines()[2:]
    assert best == "| best-of-n | 2 | 0.1000 |  | 0.2500 |  |"
    gain = "+0.0500 [+0.0500, +0.0500]"
    assert prune == f"| prune | 2 | 0.1500 | {gain} | 0.3000 | {gain} |"
