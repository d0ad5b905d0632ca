"""`steer tuned`, and the page about checkpoints: both say what the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import steer
from steer.cli.app import app
from steer.driver.denoisers import parse
from steer.driver.denoisers.checkpoints import KNOWN
from steer.driver.denoisers.checkpoints.known import is_bundled


PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_the_list_names_every_checkpoint() -> None:
    result = CliRunner().invoke(app, ["tuned"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].split()[0] == "name"
    assert [line.split()[0] for line in lines[1:]] == list(KNOWN)
    for line, known in zip(lines[1:], KNOWN.values(), strict=True):
        assert line.split()[-1] == ("(bundled)" if is_bundled(known) else known.source)
        assert known.base.split("/")[-1] in line and known.method in line


def test_the_pages_table_is_the_table() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    shown = {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}
    assert {name: shown.get(name) for name in KNOWN} == {
        name: [
            known.method,
            f"[{known.paper}](https://arxiv.org/abs/{known.paper})",
            known.base.split("/")[-1],
            known.kind,
            "-" if known.guidance is None else f"{known.guidance:g}",
            "bundled" if is_bundled(known) else f"`{known.source}`",
        ]
        for name, known in KNOWN.items()
    }


def test_the_pages_blends_are_read() -> None:
    text = PAGE.read_text("utf-8")
    written = set(re.findall(r"blend=\"([^\"]+)\"", text))
    written |= {
        found for found in re.findall(r"blend=steer\.(?:denoisers\.)?(\w+\([^\n`]*?\))[,)]", text)
    }
    assert len(written) >= 5
    for blend in written:
        if "steer." not in blend and blend != "RLG(s)":  # a loop's
            parse(blend)
    for name in ("RLG", "SwitchAt", "NegativeGuidance", "CHATS", "PreferenceGuidance"):
        assert f"`{name}" in text and hasattr(steer.denoisers, name)


@pytest.mark.parametrize("name", ["linear", "window", "Checkpoint"])
def test_what_blends_are_written_with_is_exported(name: str) -> None:
    assert name in steer.denoisers.__all__ and callable(getattr(steer.denoisers, name))
