"""What a budget buys: every method stays within it, or says what it needs at least."""

from __future__ import annotations

import re
from typing import Any

import pytest
from families import arguments, redness, shared
from hypothesis import given, settings, strategies as st

from steer import methods
from steer.methods import (
    PCNL,
    RBF,
    SMC,
    Adaptive,
    Beam,
    BestOfN,
    BestOfNGuidance,
    Blockwise,
    Budget,
    DepthFirst,
    EvoSearch,
    Gate,
    Guide,
    LookaheadGuidance,
    Method,
    NoiseOptimization,
    NoiseSearch,
    Prune,
    Then,
    Tree,
)
from steer.methods.text import parse_method
from steer.pipeline.guided import guided


SIZED = [Beam, BestOfN, BestOfNGuidance, Blockwise, Guide, LookaheadGuidance, NoiseOptimization]
SIZED += [Adaptive, DepthFirst, EvoSearch, NoiseSearch, Prune, RBF, SMC, Tree]


def test_who_can_be_sized() -> None:
    """Those that compute alone decides; the others are made of methods or files."""
    found = [getattr(methods, name) for name in methods.__all__]
    found = [m for m in found if isinstance(m, type) and issubclass(m, Method) and m is not Method]
    assert set(SIZED) == set(found) - {Budget, Gate, PCNL, Then}
    for method in (Budget, Gate, PCNL, Then):
        with pytest.raises(ValueError, match="write its arguments out"):
            method.for_compute(4, 20)


@pytest.mark.parametrize("method", SIZED)
@settings(max_examples=60, deadline=None)
@given(compute=st.floats(0.01, 64), steps=st.integers(1, 60))
def test_within_the_budget_or_the_minimum_is_told(method: Any, compute: float, steps: int) -> None:
    try:
        made = method.for_compute(compute, steps)
    except ValueError as error:
        assert f"compute={compute!r}" in str(error)
        least = float(re.findall(r"(?:give|costs|needs) ([\d.]+)", str(error))[-1])
        assert compute < least * 1.01
        enough = method.for_compute(least * 1.01, steps)
        assert enough.cost(steps) <= least * 1.01 * steps + 1e-6
    else:
        assert compute >= 1 and steps <= made.cost(steps) <= compute * steps + 1e-6


@pytest.mark.parametrize("method", SIZED)
@pytest.mark.parametrize("compute", [0, -1, 0.5, float("nan"), float("inf"), "4", True, None])
def test_what_is_no_budget(method: Any, compute: Any) -> None:
    with pytest.raises(ValueError, match=r"compute=.*(at least|[1-9] or more|above 0|plain calls)"):
        method.for_compute(compute, 20)


@pytest.mark.parametrize("compute", [0, 0.5, float("nan"), float("inf"), "4", True])
@pytest.mark.parametrize("make", [Budget, lambda compute, _: Tree(compute=compute)])
def test_methods_that_take_one(make: Any, compute: Any) -> None:
    with pytest.raises(ValueError, match="compute="):
        make(compute, BestOfN(4))


@pytest.mark.parametrize("method", SIZED)
def test_a_bare_name_on_the_command_line(method: Any) -> None:
    assert parse_method(method.__name__, 6, 20) == method.for_compute(6, 20)


@pytest.mark.parametrize("compute", [1, 1.99, 2.5])
def test_the_least_that_guided_takes(compute: float) -> None:
    """Anything from a plain call on, at any number of steps."""
    for steps in (1, 2, 9):
        out = guided(shared("sd"), redness, compute=compute)(
            **arguments("sd", num_inference_steps=steps)
        )
        assert steps <= out.report.ledger.denoiser_rows <= compute * steps
