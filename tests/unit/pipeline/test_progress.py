"""The progress bar of a search: best reward, ESS, and what is left of the budget."""

from __future__ import annotations

import re
from typing import Any

import pytest
from families import arguments, build, redness

from steer.core.when import every
from steer.methods import SMC, BestOfN, Budget, NoiseSearch, Tree
from steer.pipeline.guided import guided


def frames(pipe: Any, method: Any, **more: Any) -> tuple[list[dict[str, str]], Any]:
    """Everything that the bar ever showed behind its ticks, and the report."""
    shown: list[dict[str, str]] = []
    own = type(pipe).progress_bar

    class Watched(type(pipe)):
        def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
            bar = own(self, iterable=iterable, total=total)
            post = bar.set_postfix
            bar.set_postfix = lambda values, **k: (shown.append(dict(values)), post(values, **k))
            return bar

    pipe.__class__ = Watched
    pipe.set_progress_bar_config(disable=False, mininterval=0)
    out = guided(pipe, redness, method=method, **more)(**arguments("sd", num_inference_steps=8))
    return shown, out.report


def percent(text: str) -> int:
    return int(text.removesuffix("%"))


def test_left_falls_from_the_whole_to_nothing() -> None:
    shown, report = frames(build("sd"), BestOfN(4), lane_width=2)
    left = [percent(frame["left"]) for frame in shown]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0 and left[0] >= 87
    assert all("ESS" not in frame for frame in shown)
    assert shown[-1]["reward"] == f"{max(report.rewards):.4g}"
    assert "reward" not in shown[0]


def test_ess_where_there_are_weights() -> None:
    shown, report = frames(build("sd", "euler_a"), SMC(4, lam=5.0, when=every(2)))
    sizes = [frame["ESS"] for frame in shown if "ESS" in frame]
    assert sizes and all(re.fullmatch(r"\d\.\d/4", size) for size in sizes)
    latest = report.trace.of("weights")[-1]
    assert sizes[-1] == f"{latest['ess']:.1f}/4"


def test_a_budgets_share() -> None:
    """Of what a budget allows, not of what the method in it would cost."""
    shown, report = frames(build("sd"), Budget(2, BestOfN(16)), lane_width=1)
    assert percent(shown[-1]["left"]) == 0
    assert report.ledger.denoiser_rows == 2 * 8


@pytest.mark.parametrize("method", [Tree(6), NoiseSearch(n=2, rounds=2, through=4)])
def test_the_best_so_far(method: Any) -> None:
    shown, report = frames(build("sd", "euler_a"), method)
    best = [float(frame["reward"]) for frame in shown if "reward" in frame]
    assert best == sorted(best)
    assert best[-1] >= max(report.rewards) - 1e-4


def test_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    frames(build("sd", "euler_a"), SMC(4, when=every(2)))
    text = capsys.readouterr().err
    assert re.search(r"8/8.*reward=[\d.]+, ESS=[\d.]+/4, left=0%", text)
