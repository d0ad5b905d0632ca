"""The method of docs/writing-methods.md, as it is typed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import arguments, build

import steer


PAGE = Path(__file__).parents[2] / "docs" / "writing-methods.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's code defines."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {"pipe": build("sd")}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_it_runs_and_costs_what_it_says(page: dict[str, Any]) -> None:
    out = page["guided"](**arguments("sd"))
    assert out.report.ledger.denoiser_rows == page["KeepHalf"](8).cost(4) == 24
    assert len(out.rewards) == 1
    (base,) = out.report.base_reward
    assert base is None or out.rewards[0] >= base  # None: it was dropped half-way


def test_lanes_do_not_matter(page: dict[str, Any]) -> None:
    outs = [
        steer.guided(page["pipe"], "shapes", method=page["KeepHalf"](8), lane_width=width)(
            **arguments("sd", prompt=["a", "b"])
        )
        for width in (1, 3, 8)
    ]
    for out in outs[1:]:
        assert out.report.chosen == outs[0].report.chosen
        torch.testing.assert_close(out.images, outs[0].images, rtol=1e-3, atol=1e-3)


def test_it_composes(page: dict[str, Any]) -> None:
    inner = page["KeepHalf"](4)
    for method in (
        steer.Budget(2, inner),
        steer.Gate(inner, threshold=9.0, max_rounds=2),
        steer.Guide(inner, when=steer.at(2)),
        steer.Then(inner, steer.methods.NoiseOptimization(2, through=2)),
    ):
        out = steer.guided(page["pipe"], "shapes", method=method)(**arguments("sd"))
        assert len(out.rewards) == 1
