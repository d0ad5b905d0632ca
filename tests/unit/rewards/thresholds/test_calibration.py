"""`Calibration`: the wrongly-dropped rate by simulation, the cut by its definition, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from steer import Threshold
from steer.core.errors import ThresholdError
from steer.core.types import Step
from steer.rewards import Calibration, Pilots, Scores
from steer.rewards.thresholds.calibration import pilots_needed


Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def pilots(previews: Any, finals: Any, **more: Any) -> Pilots:
    previews = np.asarray(previews, dtype=float)
    n, k = previews.shape
    noise = tuple(np.linspace(0.8, 0.3, k))
    return Pilots(
        prompts=tuple(f"p{i}" for i in range(n)),
        steps=tuple(range(4, 4 + k)),
        count=20,
        noise=noise,
        previews=previews,
        finals=np.asarray(finals, dtype=float),
        **{"reward": "r", **more},
    )


def normal(*correlations: float) -> Draw:
    """Finals, and previews of given correlations with them."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        finals = rng.standard_normal(n)
        rho = np.array(correlations)
        own = rng.standard_normal((n, len(rho)))
        return rho * finals[:, None] + np.sqrt(1 - rho**2) * own, finals

    return draw


def crooked(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Heavy tails, a bend, and noise that grows: nothing that a straight line describes."""
    finals = rng.standard_t(2, n)
    first = np.tanh(finals) + 0.5 * rng.standard_exponential(n)
    second = finals + np.abs(finals) * rng.standard_t(3, n)
    return np.stack([first, second], 1), finals


def dropped(calibration: Calibration, previews: np.ndarray) -> np.ndarray:
    """Whether particles are gone after all cuts."""
    columns = [step - 4 for step in calibration.steps]
    margins = previews[:, columns] - calibration.threshold.tau
    return (margins < np.array(calibration.cuts)).any(1)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize(
    "draw",
    [normal(0.95), normal(0.1), normal(0.3, 0.6, 0.9), normal(0.0, 0.9), crooked],
    ids=["strong", "weak", "rising", "one blind step", "crooked"],
)
def test_the_wrongly_dropped_rate_is_at_most_alpha(draw: Draw, alpha: float) -> None:
    """Averaged over calibrations, and not far below alpha where scores are continuous."""
    rng = np.random.default_rng(7)
    rounds, fresh, tau = 200, 500, 0.5
    rates, least = [], []
    for _ in range(rounds):
        previews, finals = draw(rng, 160)
        calibration = Calibration.fit(pilots(previews, finals), tau, alpha)
        n = calibration.accepted
        assert n == int((finals >= tau).sum())
        least.append(alpha - 1 / (n + 1))  # what exchangeability leaves: floor(alpha (n+1))/(n+1)
        previews, finals = draw(rng, fresh)
        good = finals >= tau
        rates.append(dropped(calibration, previews)[good].mean())
    error = 3 * np.std(rates) / np.sqrt(rounds)
    assert np.mean(rates) <= alpha + error
    assert np.mean(rates) >= np.mean(least) - error


def test_ties_only_make_it_safer() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        previews, finals = np.round(normal(0.8)(rng, 100)[0]), rng.standard_normal(100)
        calibration = Calibration.fit(pilots(previews, finals), 0.0, 0.2)
        fresh = np.round(rng.standard_normal((500, 1)))
        rates.append(dropped(calibration, fresh).mean())
    assert np.mean(rates) <= 0.2 + 3 * np.std(rates) / np.sqrt(200)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.floats(0.02, 0.9), st.integers(0, 60))
def test_one_step_s_cut_is_the_order_statistic(seed: int, alpha: float, more: int) -> None:
    rng = np.random.default_rng(seed)
    n = pilots_needed(alpha) + more
    finals = np.concatenate([np.ones(n), -np.ones(5)])
    previews = rng.standard_normal((n + 5, 1))
    calibration = Calibration.fit(pilots(previews, finals), 0.5, alpha)
    j = int(np.floor(alpha * (n + 1) + 1e-9))
    own = np.sort(previews[:n, 0])
    assert j >= 1
    assert calibration.cuts[0] + 0.5 == pytest.approx(own[j - 1], abs=1e-8)
    assert (own < calibration.cuts[0] + 0.5).sum() == j - 1  # the j-th itself goes on


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(0.01, 100))
def test_cuts_move_with_the_reward_s_scale(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    previews, finals = normal(0.5, 0.9)(rng, 80)
    plain = Calibration.fit(pilots(previews, finals), 0.2, 0.2)
    moved = Calibration.fit(
        pilots(previews * scale + shift, finals * scale + shift), 0.2 * scale + shift, 0.2
    )
    assert moved.steps == plain.steps
    assert np.allclose(moved.cuts, np.array(plain.cuts) * scale, rtol=1e-5, atol=1e-6 * scale)


def test_a_step_that_speaks_against_the_reward_is_left_out() -> None:
    previews, finals = normal(-0.8, 0.9)(np.random.default_rng(0), 100)
    calibration = Calibration.fit(pilots(previews, finals), 0.0, 0.1)
    assert calibration.steps == (5,)
    assert len(calibration.cuts) == len(calibration.noise) == len(calibration.dropped) == 1
    with pytest.raises(ThresholdError, match="none of the steps"):
        Calibration.fit(pilots(-previews[:, [1, 1]], finals), 0.0, 0.1)


def test_it_reports_what_it_saves() -> None:
    previews, finals = normal(0.3, 0.95)(np.random.default_rng(0), 400)
    calibration = Calibration.fit(pilots(previews, finals), 0.8, 0.1)
    gone = dropped(calibration, previews)[finals < 0.8].mean()
    assert calibration.dropped == tuple(sorted(calibration.dropped))
    assert calibration.dropped[-1] == pytest.approx(gone, abs=1e-4)
    assert gone > 0.5
    assert dropped(calibration, previews)[finals >= 0.8].mean() <= 0.1


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.1, 9), (0.07, 14), (0.5, 1)])
def test_too_few_accepted_pilots(alpha: float, needed: int) -> None:
    assert pilots_needed(alpha) == needed
    rng = np.random.default_rng(0)
    finals = np.concatenate([np.ones(needed - 1), -np.ones(10)])
    short = pilots(rng.standard_normal((needed + 9, 1)), finals)
    message = f"alpha={alpha} needs {needed} accepted pilots, and {needed - 1} of {needed + 9}"
    with pytest.raises(ThresholdError, match=message):
        Calibration.fit(short, 0.0, alpha)
    enough = pilots(rng.standard_normal((needed + 10, 1)), [1.0, *finals])
    assert Calibration.fit(enough, 0.0, alpha).accepted == needed


def test_levels_by_prompt_cut_on_the_margin() -> None:
    rng = np.random.default_rng(3)
    previews, finals = normal(0.9)(rng, 60)
    level = rng.standard_normal(60)
    runs = pilots(previews, finals)
    shifted = pilots(previews + level[:, None], finals + level)
    by_prompt = Scores("r").add(level, runs.prompts)
    threshold = Threshold.fit(by_prompt, per_prompt=True)
    one, many = Calibration.fit(runs, 0.0, 0.1), Calibration.fit(shifted, threshold, 0.1)
    assert many.cuts == pytest.approx(one.cuts, abs=1e-12)
    values, prompts = (previews[:, 0] + level).tolist(), list(runs.prompts)
    flags = many.drops(4, values, prompts)
    assert flags == one.drops(4, previews[:, 0].tolist(), prompts)
    with pytest.raises(ValueError):
        many.drops(5, values, prompts)


def grid(count: int = 20, shift: float = 0.0) -> list[Step]:
    shares = {4: 0.8, 5: 0.3}
    steps = []
    for i in range(count):
        s = shares.get(i, 0.5) + shift
        alpha = float(np.sqrt(1 - s * s))
        steps.append(Step(i, count, torch.tensor(i), alpha, s, 1.0, 0.0, "epsilon"))
    return steps


def named(name: str, version: str = "") -> Any:
    return type("R", (), {"name": name, "version": version})()


def test_runs_that_it_does_not_cover_are_refused() -> None:
    previews, finals = normal(0.6, 0.9)(np.random.default_rng(0), 100)
    calibration = Calibration.fit(pilots(previews, finals, version="1"), 0.2, 0.1)
    calibration.check(named("r", "1"), grid())
    with pytest.raises(ThresholdError, match=r"'r' version '1'.*'other'"):
        calibration.check(named("other"), grid())
    with pytest.raises(ThresholdError, match=r"version '1'.*version '2'"):
        calibration.check(named("r", "2"), grid())
    with pytest.raises(ThresholdError, match=r"20 denoiser calls.*30"):
        calibration.check(named("r"), grid(30))
    with pytest.raises(ThresholdError, match=r"noise share of 0.8000 at step 4.*0.8100"):
        calibration.check(named("r"), grid(20, 0.01))
    with pytest.raises(ThresholdError, match=r"'r' version '1'.*'other'"):
        Calibration.fit(
            pilots(previews, finals, reward="other"), Threshold(0.2, reward="r", version="1"), 0.1
        )


def test_noise_shares_agree_between_parametrisations() -> None:
    vp = Step(0, 1, torch.tensor(0), 0.6, 0.8, 1.0, 0.0, "epsilon")
    ve = Step(0, 1, torch.tensor(0), 1.0, 0.8 / 0.6, 1.0, 0.0, "epsilon")
    assert vp.noise_share == pytest.approx(ve.noise_share) == pytest.approx(0.8)


def test_files_give_back_the_same_calibration(tmp_path: Path) -> None:
    previews, finals = normal(0.6, 0.9)(np.random.default_rng(0), 100)
    threshold = Threshold.fit(Scores("r", model="m").add(finals), 0.6)
    calibration = Calibration.fit(pilots(previews, finals), threshold, 0.1)
    path = tmp_path / "calibration.json"
    calibration.save(path)
    assert Calibration.load(path) == calibration
    assert eval(repr(calibration), {"Calibration": Calibration, "Threshold": Threshold}) == (
        calibration
    )
    data = json.loads(path.read_text())
    assert (data["threshold"]["reward"], data["threshold"]["scores"]) == ("r", None)
    for key, value in (("format", "x"), ("threshold", {}), ("cuts", 3), ("colour", 1)):
        path.write_text(json.dumps({**data, key: value}))
        with pytest.raises(ThresholdError):
            Calibration.load(path)
    with pytest.raises(ThresholdError, match=r"calibration='.*gone'.*No such file"):
        Calibration.load(tmp_path / "gone")


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 2.0, "low", float("nan")])
def test_alpha(alpha: Any) -> None:
    previews, finals = normal(0.9)(np.random.default_rng(0), 50)
    with pytest.raises(ThresholdError, match=r"alpha=.*between 0 and 1"):
        Calibration.fit(pilots(previews, finals), 0.0, alpha)


def test_pilots() -> None:
    previews, finals = normal(0.6, 0.9)(np.random.default_rng(0), 6)
    runs = pilots(previews, finals, version="v", model="m")
    half = runs.take(slice(0, None, 2))
    assert half.prompts == ("p0", "p2", "p4") and len(half) == 3
    assert np.array_equal(half.previews, previews[::2]) and half.reward == "r"
    scores = runs.scores()
    assert (len(scores), scores.reward, scores.version, scores.model) == (6, "r", "v", "m")
    assert scores.by_prompt()["p1"].tolist() == [finals[1]]
    bad: Sequence[tuple[Any, Any]] = [(previews[:5], finals), (previews, finals[:5])]
    for one, other in bad:
        with pytest.raises(ThresholdError, match=r"must be \(|must be finite"):
            replace(runs, previews=one, finals=other)
    with pytest.raises(ThresholdError, match="finite"):
        pilots(previews * np.nan, finals)


def test_several_steps_need_rejected_pilots() -> None:
    previews, _ = normal(0.6, 0.9)(np.random.default_rng(0), 30)
    with pytest.raises(ThresholdError, match=r"2 pilots are rejected.*at least 3"):
        Calibration.fit(pilots(previews, [-1.0, -2.0, *[1.0] * 28]), 0.0, 0.1)
    everyone = Calibration.fit(pilots(previews[:, :1], [1.0] * 30), 0.0, 0.1)
    assert everyone.dropped == (0.0,)
