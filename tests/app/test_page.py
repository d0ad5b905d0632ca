"""`steer app` as its visitors use it, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app.conftest import PATIENCE, Server


pytestmark = pytest.mark.slow


class Visitor:
    """Somebody with the page open, in a session of their own."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.asked: list[str] = []
        self.context = browser.new_context(accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(server.url)
        self.page.wait_for_selector("#draw")

    def write(self, place: str, value: object) -> None:
        self.page.locator(f"#{place} :is(textarea, input)").first.fill(str(value))

    def draw(self, prompt: str, *, steps: int = 4, compute: float = 2, seed: int = 0) -> None:
        self.write("prompt", prompt)
        self.write("steps", steps)
        self.write("seed", seed)
        self.write("compute", compute)
        self.page.locator("#seed input").blur()
        self.page.click("#draw")

    def wait(self, word: str) -> str:
        """The status line, once it has this word."""
        self.page.locator("#status", has_text=word).wait_for()
        return self.page.inner_text("#status")

    def ended(self, word: str) -> str:
        """The same, once the run is over and another may begin."""
        text = self.wait(word)
        self.page.wait_for_selector("#draw:not([disabled])")
        return text

    def pictures(self) -> list[str]:
        """The pictures of the last run: the plain one, where there is one, and the steered one."""
        images = self.page.locator("#picture figure img")
        return [image.get_attribute("src") for image in images.all()]


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[[], Visitor]]:
    """Visitors, who leave when the test is over: a page that is open asks the server on and on."""
    found: list[Visitor] = []

    def come() -> Visitor:
        found.append(Visitor(browser, server))
        return found[-1]

    yield come
    for visitor in found:
        visitor.context.close()


@pytest.fixture
def visitor(visit: Callable[[], Visitor]) -> Visitor:
    return visit()


def test_a_run_gives_a_picture_a_reward_and_a_report(
    visitor: Visitor, server: Server, tmp_path: Path
) -> None:
    before = set((server.folder / "runs").glob("*"))
    assert visitor.page.locator("#report").is_disabled()
    assert "denoiser rows" in visitor.page.inner_text("#cost")
    visitor.draw("a red circle left of a blue square")
    status = visitor.ended("Finished")
    with visitor.page.expect_download() as download:
        visitor.page.click("#report")
    path = tmp_path / "report.html"
    download.value.save_as(path)
    report = path.read_text()
    (folder,) = set((server.folder / "runs").glob("*")) - before
    entry = json.loads((folder / "run.json").read_text())["prompts"][0]
    assert f"best reward {entry['rewards'][0]:.3f}" in status
    plain, steered = visitor.pictures()
    assert plain in report and steered in report and "Who was kept" in report
    shown = visitor.page.inner_text("#picture")
    assert f"{entry['judges']['shapes-vqa'][0]:.3f}" in shown and "ORACLE" in shown.upper()
    assert f"{entry['base']['reward']:.3f}" in shown
    assert "a red circle left of a blue square" in visitor.page.inner_text("#pictures")
    assert "about" in visitor.page.inner_text("#cost")  # seconds, now that one was measured
    elsewhere = [url for url in visitor.asked if not url.startswith((server.url, "data:"))]
    assert not elsewhere


def test_a_stop_keeps_the_best_so_far(visitor: Visitor) -> None:
    visitor.draw("two green triangles", steps=20, compute=16)
    visitor.wait("Drawing")
    visitor.page.click("#stop")
    assert "best reward" in visitor.ended("Stopped")
    assert len(visitor.pictures()) == 1
    assert "Stopped after" in visitor.page.inner_text("#picture")
    assert visitor.page.locator("#report").is_enabled()


def test_bad_input_is_one_sentence(visitor: Visitor) -> None:
    for prompt, steps, words in (
        (" ", 4, "give at least one, none of them empty"),
        ("a red circle", 0, "steps=0: must be at least 1"),
        ("a red dragon", 4, "unknown word 'dragon'"),
    ):
        visitor.draw(prompt, steps=steps)
        status = visitor.ended(words)
        assert status.startswith("Cannot be drawn.") and "Traceback" not in status
        assert visitor.pictures() == []


def test_two_visitors_each_get_their_own(visit: Callable[[], Visitor]) -> None:
    first, second = visit(), visit()
    first.draw("a red circle")
    second.draw("a blue square")
    first.ended("Finished")
    second.ended("Finished")
    assert "a red circle" in first.page.inner_text("#pictures")
    assert "a blue square" in second.page.inner_text("#pictures")
    assert "a blue square" not in first.page.inner_text("#pictures")
    assert "a red circle" not in second.page.inner_text("#pictures")
    assert not set(first.pictures()) & set(second.pictures())


def test_a_stop_is_for_ones_own_run_only(visit: Callable[[], Visitor]) -> None:
    first, second = visit(), visit()
    first.draw("a red circle", steps=20, compute=8)
    first.wait("Drawing")
    second.draw("a blue square")
    second.wait("Waiting")
    second.page.click("#stop")
    assert "before it began" in second.ended("Stopped")
    assert "best reward" in first.ended("Finished")
