"""`NoiseTilt` as a kernel and as a proposal, and bad input; its law is in `tests/law`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted_work import agrees, counting, reddish
from families import arguments, redness, shared

from steer.core.errors import RewardError
from steer.core.when import at, every
from steer.methods import SMC, Beam, NoiseTilt
from steer.pipeline.guided import guided
from steer.rewards.function import FunctionReward


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("through", ["x0", "denoiser"])
def test_a_tilted_kernel_raises_the_reward(family: str, through: Any) -> None:
    """One trajectory: against the same kernel that is tilted at no step."""
    pipe, rewards = shared(family), {}
    for name, when in (("plain", at(99)), ("tilted", every(1))):
        kernel = NoiseTilt(0.4, through=through, when=when)
        method = SMC(1, kernel=kernel)
        with counting(pipe) as seen:
            out = guided(pipe, reddish, method=method)(**arguments(family))
        assert agrees(seen, out.report)
        steps = arguments(family)["num_inference_steps"]
        assert out.report.ledger.equivalent_rows <= method.cost(steps)
        rewards[name] = out.rewards[0]
    assert rewards["tilted"] > rewards["plain"]


def test_lanes_do_not_change_it() -> None:
    method = SMC(4, when=every(2), kernel=NoiseTilt(0.3, block=16))
    narrow, wide = (
        guided(shared("sd"), reddish, method=method, lane_width=width)(**arguments("sd"))
        for width in (1, 4)
    )
    assert wide.rewards == pytest.approx(narrow.rewards, abs=2e-5)
    assert wide.report.chosen == narrow.report.chosen


def test_as_a_proposal_its_weights_are_those_of_its_density() -> None:
    """They are finite, and unequal without any resampling."""
    method = SMC(4, when=every(2), ess=0.0, proposal=NoiseTilt(0.05))
    report = guided(shared("sd"), reddish, method=method)(**arguments("sd")).report
    logs = torch.tensor([row["log_weights"] for row in report.trace.of("weights")])
    assert logs.isfinite().all() and float(logs[-1].std()) > 0


def test_a_reward_without_a_gradient_is_refused() -> None:
    blind = FunctionReward(redness, differentiable=False, needs_prompt=False)
    with pytest.raises(RewardError, match=r"NoiseTilt: .*not differentiable"):
        guided(shared("sd"), blind, method=SMC(2, kernel=NoiseTilt()))(**arguments("sd"))


@pytest.mark.parametrize("through", ["denoiser", "map"])
def test_searches_that_record_no_calls_refuse_it(through: Any) -> None:
    with pytest.raises(ValueError, match=r"needs recorded denoiser calls.*use SMC"):
        Beam(2, kernel=NoiseTilt(through=through))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"strength": 0.0}, r"strength=0\.0"),
        ({"strength": 1.0}, r"strength=1\.0"),
        ({"block": 0}, "block=0"),
        ({"through": "vae"}, "through='vae'"),
        ({"eta": 1.5}, r"eta=1\.5"),
        ({"when": 0.5}, r"when=0\.5"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        NoiseTilt(**options)
