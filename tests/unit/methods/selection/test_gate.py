"""`Gate`: rounds until the threshold, then no more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import arguments, redness, seeded, shared

from steer import Threshold
from steer.core.errors import NotAcceptedError, ThresholdError
from steer.methods import BestOfN, Gate, Prune
from steer.methods.text import parse_method
from steer.pipeline.guided import guided


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
    assert out.report.ledger.denoiser_rows == 2 * (3 + 1) * 4  # and no more


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


def test_a_fitted_threshold() -> None:
    rewards = finals(8)
    tau = Threshold.fit(rewards[2:], 0.9, reward="redness")
    out, plain = run(Gate(BestOfN(2), tau)), run(Gate(BestOfN(2), tau.tau))
    assert torch.equal(out.images, plain.images)
    assert [r["threshold"] for r in out.report.trace.of("round")] == [
        r["threshold"] for r in plain.report.trace.of("round")
    ]
    assert out.report.trace.of("round")[0]["threshold"] == tau.tau
    names = {"Gate": Gate, "BestOfN": BestOfN, "Threshold": Threshold}
    assert eval(repr(out.report.method), names) == Gate(BestOfN(2), tau)


def test_levels_by_prompt() -> None:
    prompts = ["a red circle", "two"]
    low_high = Threshold.fit({prompts[0]: [-1.0], prompts[1]: [2.0]}, per_prompt=True)
    gate = Gate(BestOfN(1), low_high, max_rounds=2)
    out = run(gate, prompt=prompts, generator=[seeded(0), seeded(1)])
    assert out.accepted == [True, False]
    rounds = out.report.trace.of("round")
    assert [(r["prompt"], r["threshold"]) for r in rounds] == [(0, -1.0), (1, 2.0), (1, 2.0)]
    with pytest.raises(ThresholdError, match="prompt='three'"):
        run(gate, prompt="three")


def test_a_threshold_of_another_reward_is_refused() -> None:
    with pytest.raises(ThresholdError, match=r"'hpsv2.1' version 'x'.*'redness'"):
        run(Gate(BestOfN(2), Threshold(0.3, reward="hpsv2.1", version="x")))


def test_a_threshold_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tau.json"
    Threshold.fit([0.1, 0.3], 0.5, reward="redness").save(path)
    gate = Gate(BestOfN(4), Threshold.load(path))
    assert Gate(BestOfN(4), path) == Gate(BestOfN(4), str(path)) == gate
    assert parse_method(f"gate(best-of-n(4), threshold={str(path)!r})") == gate
    with pytest.raises(ValueError, match=r"method=.Gate.*threshold='gone.json': cannot be read"):
        parse_method("Gate(BestOfN(4), threshold='gone.json')")
