"""The page: whole without a network, safe against its texts, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from arena import ARMS, PROMPTS, compare

from steer.jobs.compare import findings


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
VOID = {"meta", "img", "input", "br", "link", "hr"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "out"
    arms = [*ARMS, {"name": "best-4", "method": "BestOfN(4)", "label": "Best <of> 4"}]
    made = compare(folder, arms=arms, diversity="pixels")
    assert made is not None
    return made


class Reader(HTMLParser):
    """Tags in balance, and every address in the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [str(v) for k, v in attrs if k in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole(page: Path) -> None:
    reader = Reader()
    html = page.read_text()
    reader.feed(html)
    assert not reader.open
    assert len(reader.links) >= 18 and all(link.startswith("data:image/") for link in reader.links)
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
    words = " ".join(reader.text)
    assert "a <b>fish</b>" in words and "<b>fish</b>" not in html
    assert "Best <of> 4" in words and "steer compare tiny.yaml" in words


def test_the_page_shows_the_results(page: Path) -> None:
    found = json.loads((page.parent / "results.json").read_text())
    html = page.read_text()
    for reward in ("test-redder", "test-evenness"):
        digits = findings.digits_of(found, reward)
        for mean in found["means"][reward].values():
            assert f"{mean['mean']:.{digits}f}".replace("-", "−") in html
    for pair in found["pairs"]:
        if pair["against"] == "base":
            said = f"{pair['wins']} won, {pair['ties']} tied, {pair['losses']} lost"
            assert said in html
    assert html.count("<article") == len(PROMPTS)


def results(**more: Any) -> dict[str, Any]:
    def gap(low: float, high: float) -> dict[str, float]:
        return {"mean": (low + high) / 2, "low": low, "high": high}

    pair = {"arm": "b", "against": "a", "wins": 1, "ties": 0, "losses": 0}
    return {
        "configuration": {"baseline": "a"},
        "arms": [{"name": "a", "label": "A"}, {"name": "b", "label": "B"}],
        "rewards": [{"name": "r", "optimised": True}, {"name": "j", "optimised": False}],
        "pairs": [
            {**pair, "reward": "r", "difference": gap(0.1, 0.2)},
            {**pair, "reward": "j", "difference": gap(*more.pop("judge"))},
        ],
    }


def test_a_hacked_reward_is_named() -> None:
    assert "B: r, which it optimises, rises" in findings.warnings_of(results(judge=(-0.2, -0.1)))[0]
    assert not findings.warnings_of(results(judge=(-0.2, 0.1)))
    alone = results(judge=(0, 1))
    alone["rewards"] = alone["rewards"][:1]
    assert "No held-out judge" in findings.warnings_of(alone)[0]


def test_the_prompts_shown_disagree_or_are_spread() -> None:
    found = {
        "prompts": {"count": 100},
        "rewards": [{"name": "r"}, {"name": "j"}],
        "disagreement": {"r": list(range(99, -1, -1)), "j": list(range(100))},
    }
    shown = findings.chosen_prompts(found, 10)
    assert len(set(shown)) == 10 and {0, 1, 99, 98} <= set(shown)
    assert list(findings.chosen_prompts(found, 100)) == list(range(100))
    assert list(findings.chosen_prompts(found, 0)) == []


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_alive_in_a_browser(page: Path, tmp_path: Path) -> None:
    """Sorting, the reward switch, the filter and the large view, by a script in the page."""
    script = """
    const said = [];
    const names = () => [...document.querySelectorAll('#arms tbody b')].map(b => b.textContent);
    const heads = [...document.querySelectorAll('#arms thead button')];
    said.push(names().join('|'));
    heads[0].click(); heads[0].click(); said.push(names().join('|'));
    heads[3].click(); said.push(names().join('|'));
    const visible = q => [...document.querySelectorAll(q)].filter(e => e.offsetParent).length;
    said.push(visible('.panel'), visible('.panel.r0'));
    document.querySelector('[data-pick=reward][data-value="1"]').click();
    said.push(visible('.panel.r0'), visible('.panel.r1'));
    const find = document.getElementById('find');
    find.value = 'FISH'; find.dispatchEvent(new Event('input')); said.push(visible('.card'));
    find.value = ''; find.dispatchEvent(new Event('input')); said.push(visible('.card'));
    const shots = [...document.querySelectorAll('.shot')].filter(e => e.offsetParent);
    shots[0].click(); const first = document.querySelector('#large img').src;
    document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));
    const next = document.querySelector('#large img').src;
    said.push(document.getElementById('large').open, next === shots[1].querySelector('img').src);
    said.push(document.documentElement.scrollWidth <= window.innerWidth);
    document.title = 'said ' + said.join(',');
    """
    html = page.read_text().replace("</body>", f"<script>{{{script}}}</script></body>")
    copy = tmp_path / "page.html"
    copy.write_text(html)
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
         copy.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>said (.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-500:]
    said = title[1].replace("&lt;", "<").replace("&gt;", ">").split(",")
    assert said[0] == "base|best|Best <of> 4"
    assert said[1] == "|".join(sorted(["base", "best", "Best <of> 4"], key=str.lower, reverse=True))
    assert said[2] == "Best <of> 4|best|base"  # by compute, the dearest first
    assert said[3:] == ["1", "1", "0", "1", "1", "3", "true", "true", "true"]
