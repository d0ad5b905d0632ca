"""Bars: which reward has to be reached at which step, and what is no bar."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from steer.core.errors import ThresholdError
from steer.core.types import Step
from steer.rewards import Threshold
from steer.rewards.function import FunctionReward
from steer.rewards.thresholds.calibration import Calibration
from steer.search.bars import Bars, read_bar


def context(count: int = 10, name: str = "red") -> Any:
    """What a bar looks at: the reward, the steps, the prompts."""
    steps = [
        Step(k, count, k, 1 - k / count, k / count, 0.0, 1.0, "flow")  # type: ignore[arg-type]
        for k in range(count)
    ]
    reward = FunctionReward(lambda images, prompts: images.mean((1, 2, 3)), name=name)
    return SimpleNamespace(reward=reward, steps=steps, prompts=["a", "b"])


def calibration(ctx: Any, **more: Any) -> Calibration:
    tau = Threshold(0.0, reward="red", prompts={"a": 1.0, "b": 2.0})
    noise = tuple(ctx.steps[k].noise_share for k in (3, 6))
    given = {"alpha": 0.1, "count": len(ctx.steps), "accepted": 9, "pilots": 20, **more}
    return Calibration(threshold=tau, steps=(3, 6), cuts=(-0.5, -0.25), noise=noise, **given)


def test_a_number_is_the_same_everywhere_and_elsewhere_all_pass() -> None:
    bars = Bars.of(context(), 0.5, [2, 4, 10])
    assert [bars.at(k, "a") for k in (2, 4, 10)] == [0.5] * 3
    assert bars.at(3, "a") == -math.inf and not bars.judges(3) and bars.judges(4)


def test_rewards_are_spread_over_the_places() -> None:
    bars = Bars.of(context(), (0.1, 0.2), range(1, 6))
    assert [bars.at(k, "a") for k in range(1, 6)] == [0.1, 0.1, 0.1, 0.2, 0.2]
    assert Bars.of(context(), (0.1, 0.2, 0.3), [4, 4, 10]).levels == {4: 0.2, 10: 0.3}


def test_a_calibration_has_steps_of_its_own_and_levels_by_prompt() -> None:
    ctx = context()
    bars = Bars.of(ctx, calibration(ctx), [1, 2])
    assert [bars.at(k, "a") for k in (1, 3, 6, 10)] == [-math.inf, 0.5, 0.75, 1.0]
    assert bars.at(10, "b") == 2.0


@pytest.mark.parametrize(("count", "name"), [(9, "red"), (10, "blue")])
def test_a_calibration_of_another_run_is_refused(count: int, name: str) -> None:
    with pytest.raises(ThresholdError):
        Bars.of(context(count, name), calibration(context()), [])


def test_what_is_a_bar(tmp_path: Any) -> None:
    assert read_bar([0.1, 2], "RBF()") == (0.1, 2)
    assert read_bar(-math.inf, "RBF()") == -math.inf
    made = calibration(context())
    made.save(tmp_path / "made.json")
    assert read_bar(str(tmp_path / "made.json"), "RBF()") == made


@pytest.mark.parametrize("value", [math.nan, True, (), [0.1, "a"], {}, (0.1, math.nan)])
def test_what_is_none(value: Any) -> None:
    with pytest.raises(ValueError, match=r"threshold=.*write RBF\(\)"):
        read_bar(value, "RBF()")
