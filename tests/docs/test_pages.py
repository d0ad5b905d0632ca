"""One page for every method and every reward: where it is, how it is laid out, that it runs."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import steer
from steer.rewards.names import BUILT_IN, PRESETS


DOCS = Path(__file__).parents[2] / "docs"
NAV = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())["nav"]

METHOD_HEADINGS = [
    "What it does",
    "Use it",
    "How it works",
    "Settings",
    "Which pipelines",
    "Cost",
    "Measured",
    "Source",
]
REWARD_HEADINGS = [
    "What it judges",
    "Use it",
    "Range and direction",
    "Gradients",
    "Cost",
    "Weights and licence",
    "Known faults",
    "Source",
]

METHODS = [name for name in steer.methods.__all__ if name != "Method"]  # that is the base class
REWARDS = {**BUILT_IN, **PRESETS}


def plain(name: str) -> str:
    return name.replace("_", "").lower()


METHOD_PAGES = {plain(page.stem): page for page in (DOCS / "methods").glob("*.md")}
REWARD_PAGES = {page.stem: page for page in (DOCS / "rewards").glob("*.md")}


def reward_names(page: Path) -> list[str]:
    """What a reward's page is about, by its title: `clip:<model>` is the registry's `clip:*`."""
    title = page.read_text().partition("\n")[0].removeprefix("# ").replace("\\", "")
    return [re.sub(r":<.*", ":*", name) for name in title.split(", ")]


def page_of_reward(name: str) -> Path:
    """The page that has the name in its title; it is called as the first name there."""
    pages = [page for page in REWARD_PAGES.values() if name in reward_names(page)]
    assert len(pages) == 1, f"{name}: {pages}"
    assert pages[0].stem == reward_names(pages[0])[0].removesuffix(":*")
    return pages[0]


def headings(page: Path) -> list[str]:
    return re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)


def in_nav(tree: Any) -> Iterator[str]:
    """Every page that the site's navigation names."""
    if isinstance(tree, str):
        yield tree
        return
    for part in tree.values() if isinstance(tree, dict) else tree:
        yield from in_nav(part)


def shown(cell: str) -> str:
    """A default as code; where it holds a bar, which would end the cell, HTML says so."""
    return html.unescape(re.sub("</?code>", "`", cell))


def section(page: Path, heading: str) -> str:
    return page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_page(name: str) -> None:
    page = METHOD_PAGES[plain(name)]
    assert page.read_text().startswith(f"# {name}\n")
    assert headings(page) == METHOD_HEADINGS
    assert str(page.relative_to(DOCS)) in set(in_nav(NAV))


@pytest.mark.parametrize("name", METHODS)
def test_its_settings_are_those_of_the_code(name: str) -> None:
    table = section(METHOD_PAGES[plain(name)], "Settings")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| ", table, re.MULTILINE)
    made = inspect.signature(getattr(steer.methods, name)).parameters.values()
    empty = inspect.Parameter.empty
    defaults = {p.name: "required" if p.default is empty else f"`{p.default!r}`" for p in made}
    assert {key: shown(default) for key, default in rows} == defaults


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_reward_has_its_page(name: str) -> None:
    page = page_of_reward(name)
    assert headings(page) == REWARD_HEADINGS
    assert str(page.relative_to(DOCS)) in set(in_nav(NAV))


def test_names_share_a_page_where_they_are_one_model() -> None:
    for page in REWARD_PAGES.values():
        names = [name for name in reward_names(page) if name in REWARDS]
        homes = {REWARDS[name].partition(":")[0].removesuffix("_video") for name in names}
        assert len(homes) <= 1, page.name


PAGES = sorted(
    {METHOD_PAGES[plain(name)] for name in METHODS} | {page_of_reward(name) for name in REWARDS}
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_its_example_runs_as_typed(page: Path, offline: Path) -> None:
    """In fewer steps, on stand-ins for what is downloaded; the options of a reward are held against
    its own."""
    blocks = re.findall(r"```python\n(.*?)```", section(page, "Use it"), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        typed = re.sub(r"(num_inference_steps)=\d\d\b", r"\1=9", block)
        exec(compile(typed, str(page), "exec"), names)
    assert names["out"].rewards


@pytest.mark.parametrize("guide", ["videos", "writing-rewards"])
def test_a_guide_runs_as_typed(guide: str, offline: Path) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / f"{guide}.md").read_text(), re.DOTALL):
        exec(compile(block, guide, "exec"), names)
    assert names["out"].rewards
