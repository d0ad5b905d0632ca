"""What a call will cost, held against what the report's ledger then says."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from families import arguments, redness, shared

from steer.core.costs import ROWS
from steer.methods import SMC, BestOfN, NoiseSearch, Prune
from steer.pipeline.estimate import estimate
from steer.pipeline.guided import Guided, guided
from steer.pipeline.report.views import CostView


def spent(call: Guided, steps: int, **effort: Any) -> tuple[Any, CostView]:
    """The report, and its cost as it is shown."""
    report = call(**arguments("sd", num_inference_steps=steps, output_type="pt"), **effort).report
    flops = {"flops": report.ledger.flops, "plain_flops": report.ledger.plain_flops}
    return report, CostView.of(report.ledger.to_dict() | flops, steps)


@pytest.mark.sample
@pytest.mark.parametrize("steps", [4, 8, 16])
@pytest.mark.parametrize("compute", [1, 2.5, 8])
def test_what_compute_comes_to_is_what_the_call_then_does(steps: int, compute: float) -> None:
    call = guided(shared("sd"), redness)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that little compute is the plain image
        spent(call, 2, compute=1.5)  # what one of each costs
        expected = estimate(call, steps, compute=compute)
        report, cost = spent(call, steps, compute=compute)
    assert repr(expected.method) == repr(report.method)
    assert expected.work.rows == report.ledger.denoiser_rows
    assert expected.work.decodes + expected.work.previews == report.ledger.decodes
    assert expected.work.scores in (report.ledger.reward_calls, report.ledger.reward_calls - 1)
    assert expected.calls == pytest.approx(cost.multiple, rel=1e-6)  # the same sums, in two orders
    assert expected.calls <= compute * (1 + 1e-9)


@pytest.mark.parametrize("method", [BestOfN(3), BestOfN, Prune, SMC, NoiseSearch(4, rounds=1)])
def test_methods_by_name_and_written_out(method: Any) -> None:
    call = guided(shared("sd", "euler_a"), redness)
    spent(call, 8, compute=2)
    effort = {"method": method} | ({"compute": 4} if isinstance(method, type) else {})
    expected = estimate(call, 8, **effort)
    report, cost = spent(call, 8, **effort)
    assert repr(expected.method) == repr(report.method)
    assert expected.work.rows == report.ledger.denoiser_rows
    assert expected.calls == pytest.approx(cost.multiple, rel=0.02)


def test_before_the_first_call_rows_count() -> None:
    expected = estimate(guided(shared("sd"), redness), 8, compute=4)
    assert expected.costs is ROWS
    assert expected.work.rows <= 4 * 8 and expected.calls <= 4


def test_it_takes_what_guided_was_given_and_refuses_what_that_refuses() -> None:
    call = guided(shared("sd"), redness, method=BestOfN(3))
    assert estimate(call, 8).method == BestOfN(3)
    with pytest.raises(ValueError, match=r"compute=0\.5"):
        estimate(call, 8, compute=0.5)
    with pytest.raises(ValueError, match="the method sets its own cost"):
        estimate(call, 8, method=BestOfN(2), compute=4)
