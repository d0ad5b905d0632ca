"""`Gate`: rounds until the threshold, then no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from families import arguments, redness, seeded, shared

from steer.errors import NotAcceptedError
from steer.methods import BestOfN, Gate, Prune
from steer.pipeline import guided


PIPE = "sd"


def run(method: Any, **given: Any) -> Any:
    return guided(shared(PIPE), redness, method=method)(**arguments(PIPE, **given))


def finals(n: int) -> list[float]:
    rows = run(BestOfN(n)).report.trace.of("score")
    return [value for row in rows for value in row["reward"]]


def test_one_round_is_enough_for_a_low_threshold() -> None:
    out = run(Gate(BestOfN(2), threshold=-1.0))
    assert out.accepted == [True]
    assert out.report.ledger.denoiser_rows == 2 * 4
    assert torch.equal(out.images, run(BestOfN(2)).images)


def test_it_stops_at_the_first_round_that_clears() -> None:
    rewards = finals(8)
    rounds = [max(rewards[: 2 * i]) for i in range(1, 5)]
    for threshold in {*rounds}:
        out = run(Gate(BestOfN(2), threshold=threshold))
        assert out.accepted == [True]
        needed = next(i for i, best in enumerate(rounds) if best >= threshold) + 1
        assert out.report.ledger.denoiser_rows == needed * 8
        assert out.rewards[0] == pytest.approx(rounds[needed - 1], abs=1e-6)
        assert len(out.report.trace.of("round")) == needed


def test_the_best_so_far_when_nothing_clears() -> None:
    gate = Gate(BestOfN(2), threshold=2.0, max_rounds=3)
    out = run(gate)
    assert out.accepted == [False]
    assert out.rewards == pytest.approx([max(finals(6))], abs=1e-6)
    assert out.report.ledger.denoiser_rows == gate.cost(4) == 3 * 8
    assert [row["accepted"] for row in out.report.trace.of("round")] == [False] * 3
    starts = [row["particle"] for row in out.report.trace.of("start")]
    assert starts == [[0, 1], [2, 3], [4, 5]]


def test_it_raises_if_asked() -> None:
    gate = Gate(BestOfN(2), threshold=2.0, max_rounds=1, on_reject="raise")
    with pytest.raises(NotAcceptedError, match=r"prompt 0 \('a red circle'\).*threshold=2.0"):
        run(gate)


def test_prompts_that_are_done_rest() -> None:
    """Prompt by prompt it is the gate of that prompt alone."""
    prompts = ["a red circle", "two", "z"]
    apart = [run(BestOfN(2), prompt=p, generator=[seeded(i)]) for i, p in enumerate(prompts)]
    threshold = sorted(out.rewards[0] for out in apart)[1]
    gate = Gate(BestOfN(2), threshold=threshold - 1e-5, max_rounds=2)
    generators = [seeded(i) for i in range(3)]
    out = run(gate, prompt=prompts, generator=generators)
    for i, prompt in enumerate(prompts):
        alone = run(gate, prompt=prompt, generator=[seeded(i)])
        assert alone.rewards[0] == pytest.approx(out.rewards[i], abs=1e-5)
        assert alone.accepted[0] == out.accepted[i]
    assert out.report.ledger.reward_calls == 3 * 2 + 2  # only one prompt needed a second round
    assert out.report.ledger.denoiser_rows == 2 * 3 * 8  # the batch is the pipeline's


@dataclass(frozen=True)
class Above:
    limit: float

    def accept(self, reward: float) -> bool:
        return reward > self.limit


def test_threshold_objects_and_other_methods() -> None:
    pruned = Prune(start=4, keep=(2,), at=(0.5,))
    out = run(Gate(pruned, threshold=Above(-1.0)))
    assert out.accepted == [True]
    assert torch.allclose(out.images, run(pruned).images, atol=1e-5)


def test_several_images_are_judged_one_by_one() -> None:
    rewards = sorted(finals(8), reverse=True)
    gate = Gate(BestOfN(2), threshold=rewards[0] + 1e-6 - 2e-6, max_rounds=1)
    out = run(gate, num_images_per_prompt=2)
    assert len(out.accepted) == 2
    assert out.accepted == [reward >= gate.threshold for reward in out.rewards]
