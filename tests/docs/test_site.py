"""README and the site's first pages run as typed, and the API names everything public."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import steer


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/start/install.md",
    "docs/start/sdxl.md",
    "docs/start/flux.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_typed(page: str, offline: Path) -> None:
    """Its blocks one after the other, as a reader would type them."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        exec(compile(block, page, "exec"), names)
    assert names["out"].rewards
    assert (offline / "best.png").stat().st_size > 0


def test_the_api_names_everything_public() -> None:
    pages = "".join(page.read_text() for page in DOCS.glob("api/*.md"))
    shown = set(re.findall(r"^::: \S+\.(\w+)$", pages, re.M))
    folders = {"methods", "rewards", "denoisers", "errors", "picks", "pipeline", "shapes", "tune"}
    public = {*steer.__all__, *steer.methods.__all__, *steer.tune.__all__} - folders
    members = {"at", "between", "every", "SteerError"}  # on the pages of their modules
    assert public - members <= shown
