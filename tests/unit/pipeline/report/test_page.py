"""The page: nothing from outside, everything escaped, numbers as in the run."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from steer.cli.demo import write_grid
from steer.cli.summary import summary
from steer.core.files.png import save_png
from steer.core.files.run_folder import RunFolder
from steer.pipeline.report import genealogy, plots
from steer.pipeline.report.page import render, run_view, write_report
from steer.pipeline.report.views import CostView


EVIL = """<script>alert("x")</script> & 'quotes' {{ 7*7 }}"""
STEPS = 10
EVENTS = [
    {"event": "start", "step": None, "prompt": 0, "particle": [0, 1, 2, 3]},
    {
        "event": "score",
        "step": 4,
        "prompt": 0,
        "preview": True,
        "particle": [0, 1, 2, 3],
        "reward": [0.1, 0.4, 0.2, -0.3],
    },
    {
        "event": "select",
        "step": 4,
        "prompt": 0,
        "particle": [0, 1, 2, 3],
        "kept": [1, 2],
        "dropped": [0, 3],
    },
    {
        "event": "score",
        "step": None,
        "prompt": 0,
        "preview": False,
        "particle": [1, 2],
        "reward": [0.5, 0.6],
    },
    {"event": "final", "step": None, "prompt": 0, "chosen": [2]},
]


def picture(path: Path, width: int = 16, height: int = 16) -> str:
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (height, width, 3), np.uint8)
    save_png(path, Image.fromarray(pixels), {"prompt": "x"})
    return path.name


def entry(folder: Path, index: int, prompt: str, *, verdicts: bool = True) -> dict[str, Any]:
    verdict = {"fraction": 0.5, "all_met": False, "notes": [f"note <b>{index}</b>"]}
    sheet = picture(folder / f"{index}-previews.png", 16 * 6)
    tiles = [[0, 4], [1, 4], [2, 4], [3, 4], [1, -1], [2, -1]]
    return {
        "index": index,
        "prompt": prompt,
        "seed": index,
        "images": [picture(folder / f"{index}.png")],
        "rewards": [0.6],
        "accepted": True,
        "judges": {"clip": [0.31]},
        "verdicts": [{**verdict, "all_met": True, "fraction": 1.0}] if verdicts else None,
        "base": {
            "image": picture(folder / f"{index}-plain.png"),
            "reward": 0.2,
            "judges": {"clip": 0.25},
            "verdict": verdict if verdicts else None,
        },
        "steps": STEPS,
        "ledger": {
            "denoiser_rows": 30,
            "denoiser_calls": 30,
            "cfg_rows": 2,
            "decodes": 6,
            "reward_calls": 6,
            "seconds": {"total": 2.0, "decode": 0.5, "reward": 0.25},
            "peak_bytes": 2**30,
            "remote": {"requests": 7, "reused": 1, "prompt_tokens": 700, "completion_tokens": 7},
        },
        "trace": EVENTS,
        "previews": {"file": sheet, "size": [16, 16], "tiles": tiles},
    }


def make_run(
    folder: Path, prompts: list[str], *, kind: str = "sample", **options: Any
) -> RunFolder:
    arguments = {"prompts": prompts, "pipeline": "shapes", "reward": "shapes", "seed": 0}
    run = RunFolder.create(folder, arguments, kind=kind, command="steer sample x --out y")
    for index, prompt in enumerate(prompts):
        run.add(entry(folder, index, prompt, **options))
    run.close("finished")
    return run


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] not in ("style", "script"):
            self.text += data


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(write_report(make_run(tmp_path, ["a red circle", EVIL])).read_text("utf-8"))


def test_nothing_is_loaded_from_outside(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "script", "base")
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:image/", "#")) or not value, (tag, name, value[:60])
    policy = [a for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policy and "default-src 'none'" in str(policy[0]["content"])


def test_style_loads_nothing(tmp_path: Path) -> None:
    html = render(run_view(make_run(tmp_path, ["a red circle"])))
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert "http" not in re.sub(r"data:image/webp;base64,[\w+/=]+", "", html).replace(
        "http-equiv", ""
    )


def test_prompts_and_notes_are_escaped(page: Page) -> None:
    assert EVIL in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert "note <b>0</b>" in page.text


def test_numbers_of_the_page(page: Page) -> None:
    text = " ".join(page.text.split())
    for words in ("0.200→0.600", "+0.400 over the plain call", "0→2 of 2", "3.0× a plain call"):
        assert words in text, words
    assert "Held-out judge, clip" in text and "0.250→0.310" in text
    assert "4 judged, 2 kept" in text and "2 judged, 1 chosen" in text


def test_requests_to_servers_are_summed_over_prompts(page: Page) -> None:
    assert "Requests to servers of rewards" in page.text
    assert "Tokens read there, written1400, 14" in "".join(page.text.split("\n"))


def test_every_image_has_words(page: Page) -> None:
    for tag, attributes in page.tags:
        if tag == "img":
            assert "alt" in attributes
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]


def test_small_images_are_shown_pixel_by_pixel(tmp_path: Path) -> None:
    run = make_run(tmp_path, ["a red circle"])
    view = run_view(run).prompts[0].guided[0]
    assert view.small and view.scale == 14
    picture(tmp_path / "0.png", 512, 1024)
    large = run_view(run).prompts[0].guided[0]
    assert not large.small and large.scale == 1 and (large.width, large.height) == (512, 1024)


def test_interrupted_and_empty_runs_have_pages(tmp_path: Path) -> None:
    for finished in (1, 0):
        (tmp_path / str(finished)).mkdir()
        run = make_run(tmp_path / str(finished), ["one", "two"][:finished])
        run.data["arguments"]["prompts"] = ["one", "two"]
        assert f"{finished} of 2 prompts are finished" in render(run_view(run))


def test_without_verdicts_base_and_previews(tmp_path: Path) -> None:
    run = make_run(tmp_path, ["one", "two"], verdicts=False)
    for item in run.entries:
        item.update(base=None, previews=None)
    html = render(run_view(run))
    assert "racle" not in Page(html).text and "Plain call<" not in html
    assert "×" in html


def test_genealogy_of_a_pruning() -> None:
    (block,) = genealogy.blocks(EVENTS, 0, STEPS)
    assert block.columns == [2, 1, 0, 3]
    first, last = block.stages
    assert {p: c.state for p, c in first.cells.items()} == {
        0: "dropped",
        1: "kept",
        2: "kept",
        3: "dropped",
    }
    assert {p: c.state for p, c in last.cells.items()} == {1: "dropped", 2: "chosen"}
    assert (first.at, last.at) == (0.5, 1.0)
    lines = genealogy.lines(block)
    assert lines[-1].particle == 2 and lines[-1].points == ((0.5, 0.2), (1.0, 0.6))


def test_genealogy_of_a_gate_has_a_block_per_round() -> None:
    events = []
    for number, accepted in ((0, False), (1, True)):
        ids = [2 * number, 2 * number + 1]
        common = {"prompt": 0, "step": None, "particle": ids}
        events += [
            {"event": "start", **common},
            {"event": "score", "preview": False, "reward": [0.1, 0.5 * number], **common},
            {"event": "round", "best": 0.5 * number, "threshold": 0.4, "accepted": accepted}
            | {"prompt": 0, "step": None},
        ]
    events.append({"event": "final", "prompt": 0, "step": None, "chosen": [3]})
    first, second = genealogy.blocks(events, 0, STEPS)
    assert (first.accepted, second.accepted, second.best) == (False, True, 0.5)
    assert {c.state for c in first.stages[0].cells.values()} == {"dropped"}
    assert second.columns[0] == 3


def test_genealogy_of_a_resampling_names_parents() -> None:
    events: list[dict[str, Any]] = [
        {"event": "score", "step": 2, "prompt": 0, "preview": True, "particle": [0, 1, 2]}
        | {"reward": [0.1, 0.9, 0.2]},
        {"event": "select", "step": 2, "prompt": 0, "particle": [0, 1, 2], "ancestors": [1, 1, 2]},
    ]
    (block,) = genealogy.blocks(events, 0, STEPS)
    assert block.stages[0].cells[0].parent == 1
    assert block.stages[0].cells[1].parent is None


def test_genealogy_follows_copies_under_new_names() -> None:
    judged: dict[str, Any] = {"event": "score", "prompt": 0, "preview": True}
    events: list[dict[str, Any]] = [
        judged | {"step": 2, "particle": [0, 1, 2], "reward": [0.1, 0.9, 0.2]},
        {"event": "select", "step": 2, "prompt": 0, "particle": [7, 1, 2], "ancestors": [1, 1, 2]},
        judged | {"step": 5, "particle": [7, 1, 2], "reward": [0.5, 0.6, 0.3]},
        judged | {"step": 8, "particle": [7, 1, 2], "reward": [0.5, 0.6, 0.3]},
    ]
    (block,) = genealogy.blocks(events, 0, STEPS)
    first, second, third = block.stages
    assert first.cells[0].state == "dropped"
    assert (second.cells[7].parent, third.cells[7].parent) == (1, None)
    assert second.cells[1].parent is None


def test_a_gate_is_plotted_round_by_round() -> None:
    rounds = [
        [genealogy.Line(0, ((1.0, 0.2),), "dropped")],
        [genealogy.Line(1, ((1.0, 0.7),), "chosen")],
    ]
    svg = plots.strip_plot(rounds, name="<r>", base=0.2, threshold=0.6)
    for words in ("round 2", "threshold 0.600", "plain 0.200", ">0.700<", "&lt;r&gt; reward"):
        assert words in svg
    assert plots.strip_plot([], name="r") == plots.reward_plot([], name="r") == ""


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.0, 1.0), (-0.31, 0.87), (19.2, 31.4), (0.5, 0.5001), (-3e4, 5e4)):
        found = plots.ticks(low, high)
        assert 2 <= len(found) <= 7
        assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.500"), (-0.25, "−0.250"), (27.123, "27.12"), (-0.0001, "0.000"), (None, "–")],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert plots.number(value) == text


def test_costs_add_up() -> None:
    one = CostView.of({"denoiser_rows": 30, "backward_rows": 5, "seconds": {"total": 1.0}}, 10)
    both = CostView.sum([one, one])
    assert one.multiple == both.multiple == 4.0
    assert both.total_seconds == 2.0 and both.plain_rows == 20


def test_summary_and_grid(tmp_path: Path) -> None:
    from rich.console import Console

    run = make_run(tmp_path, ["a [red] circle", *["two blue squares"] * 9], kind="demo")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary(run_view(run)))
    text = console.export_text()
    assert "a [red] circle" in text and "0 → 10 of 10" in text and "3.0× a plain call" in text
    with Image.open(write_grid(run)) as image:
        assert image.width > 8 * 256 and image.height > 4 * 256
