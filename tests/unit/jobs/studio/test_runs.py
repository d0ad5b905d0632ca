"""One run of the page as updates, and its predicted cost against what it then did."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from steer.core.files.png import open_image
from steer.jobs.studio.cost import Pace, in_words, predicted
from steer.jobs.studio.runs import Ask, Update, draw
from steer.jobs.studio.studio import Studio
from steer.jobs.studio.view import gallery, shown, status, styles


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("studio")
    return Studio.load(folder, judges=("shapes-vqa",), device="cpu")


def asked(prompt: str = "a red circle", **more: Any) -> Ask:
    return Ask(prompt, **{"reward": "shapes", "steps": 4, "compute": 2.0, **more})


def ran(studio: Studio, ask: Ask, stop: Event | None = None) -> list[Update]:
    return list(draw(studio, ask, stop or Event()))


@pytest.mark.parametrize("more", [{}, {"steps": 16, "compute": 4.0}, {"method": "BestOfN"}])
def test_the_prediction_is_what_the_ledger_then_says(studio: Studio, more: dict[str, Any]) -> None:
    ask = asked(**more)
    assert ask.compute is not None and ask.steps is not None
    cost = predicted(studio.guides["shapes"], ask.method, ask.compute, ask.steps)
    run = ran(studio, ask)[-1].run
    assert run is not None
    (entry,) = run.entries
    assert entry["method"] == repr(cost.method)
    assert entry["ledger"]["denoiser_rows"] == cost.work.rows
    spent = sum(entry["ledger"]["flops"].values()) / entry["ledger"]["plain_flops"]
    assert spent == pytest.approx(cost.calls, rel=1e-6)
    pace = Pace.of(entry["ledger"])
    assert pace is not None and studio.paces["shapes"] == pace
    assert pace.seconds(cost) == pytest.approx(entry["ledger"]["seconds"]["total"], rel=0.05)
    assert f"{cost.work.rows} denoiser rows; about" in in_words(cost, pace)
    assert "seconds are known after the first picture" in in_words(cost, None)


def test_a_run_is_the_command_line_s_own(studio: Studio, tmp_path: Path) -> None:
    """Its updates rise to the result, which the plain call stands beside."""
    *on_the_way, last = ran(studio, asked(steps=16, compute=4.0, seed=3))
    shares = [update.share for update in on_the_way]
    assert shares == sorted(shares) and last.state == "finished" and last.run is not None
    entry = last.run.entries[0]
    assert last.reward == entry["rewards"][0] == max(entry["rewards"])
    assert entry["seed"] == 3 and set(entry["judges"]) == {"shapes-vqa"}
    assert entry["base"]["reward"] is not None and entry["verdicts"]
    page = shown(last, "shapes")
    assert (last.run.folder / "report.html").is_file() and "Held-out judge" in page
    assert "a red circle" in gallery([last.run]) and "report.html" in gallery([last.run])


def test_a_look_shows_the_best_candidate_so_far(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steer.jobs.studio.runs._OFTEN", 0.0)
    looks = [update for update in ran(studio, asked(method="BestOfN", compute=12.0))][:-1]
    seen = [update for update in looks if update.image is not None]
    assert seen and seen[-1].image.dtype == np.uint8
    assert "the best so far" in shown(seen[-1], "shapes")
    assert f"{seen[-1].share:.0%}" in status(seen[-1])


def test_a_stop_keeps_the_best_so_far(studio: Studio) -> None:
    stop, updates = Event(), []
    for update in draw(studio, asked(method="BestOfN", steps=8, compute=16.0), stop):
        updates.append(update)
        stop.set()
    run = updates[-1].run
    assert updates[-1].state == "stopped" and run is not None and run.status == "interrupted"
    entry = run.entries[0]
    assert entry["base"] is None and entry["ledger"]["denoiser_rows"] < 100
    with open_image(run.folder / entry["images"][0]) as image:
        assert np.asarray(image).std() > 0
    assert "Stopped after" in (run.folder / "report.html").read_text()


def test_a_visitor_who_goes_away_stops_the_run(studio: Studio) -> None:
    stop = Event()
    updates = draw(studio, asked(steps=20, compute=16.0, method="BestOfN"), stop)
    assert next(updates).state == "drawing"
    updates.close()
    assert stop.is_set()
    assert ran(studio, asked())[-1].state == "finished"  # nobody holds the pipeline


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prompt": "  "}, "none of them empty"),
        ({"prompt": "a red dragon"}, "unknown word 'dragon'"),
        ({"compute": 0.5}, "compute=0.5: a plain call is 1; give 1 or more"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"steps": None}, "steps: empty; give a number"),
        ({"steps": 5000}, "num_inference_steps"),
        ({"seed": -1}, "seed=-1: must not be negative"),
        ({"method": "BestOfN(400)"}, "method='BestOfN(400)': must be one of"),
        ({"reward": "/etc/passwd"}, "reward='/etc/passwd': must be one of 'shapes'"),
    ],
)
def test_bad_input_is_one_sentence(studio: Studio, more: dict[str, Any], words: str) -> None:
    (update,) = ran(studio, asked(**more))
    assert update.state == "failed" and words in update.error and "\n" not in update.error
    assert "Cannot be drawn" in status(update)


def test_rewards_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name at least one, and each once"):
        Studio.load(tmp_path, rewards=("shapes", "shapes"))
    with pytest.raises(ValueError, match="is unknown"):
        Studio.load(tmp_path, rewards=("nonsense",))


def test_styles_stay_inside_the_page_s_own_part() -> None:
    assert ":root" not in styles() and ".run.run" in styles()
