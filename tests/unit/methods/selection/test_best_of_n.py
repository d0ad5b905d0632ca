"""`BestOfN` against the plain calls that it stands for."""

from __future__ import annotations

import pytest
from families import arguments, redness, shared
from torch import Tensor

from steer.methods import BestOfN
from steer.pipeline.guided import guided


def test_rewards_rise_with_n_and_particles_are_shared() -> None:
    rewards = [
        guided(shared("sd"), redness, method=BestOfN(n))(**arguments("sd")).rewards[0]
        for n in (1, 2, 5)
    ]
    assert rewards == sorted(rewards)


def test_costs() -> None:
    assert BestOfN(3).cost(7) == 21
    out = guided(shared("sd"), redness, method=BestOfN(3))(**arguments("sd"))
    ledger = out.report.ledger
    assert (ledger.denoiser_rows, ledger.reward_calls, ledger.decodes) == (12, 3, 3)
    assert ledger.cfg_rows == 2
    assert ledger.seconds["total"] > ledger.seconds["reward"]


def test_trace() -> None:
    out = guided(shared("sd"), redness, method=BestOfN(4))(**arguments("sd", output_type="pt"))
    trace = out.report.trace
    assert trace.of("start")[0]["particle"] == [0, 1, 2, 3]
    rewards = trace.of("score")[0]["reward"]
    best = max(range(4), key=rewards.__getitem__)
    assert trace.of("final")[0]["chosen"] == [best]
    assert out.rewards == pytest.approx([float(out.images[0, 0].mean())], abs=1e-6)


def test_ties_go_to_the_plain_call() -> None:
    def equal(images: Tensor, prompts: list[str]) -> Tensor:
        return images.new_zeros(len(images))

    out = guided(shared("sd"), equal, method=BestOfN(3))(**arguments("sd"))
    assert out.report.chosen == [(0, 0)]
