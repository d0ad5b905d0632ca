"""`benchmarks/conformance/page.py`: a row per pipeline class, a note per reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.conformance import __main__ as command, page
from benchmarks.conformance.checks import CHECKS, METHODS
from benchmarks.conformance.results import Record, Result, append, load


VERSIONS = {"torch": "2"}


def record(case: str, pipeline: str, outcome: Any = "right", why: str = "", **more: Any) -> Record:
    checks = dict.fromkeys(CHECKS, Result("right")) | {"SMC": Result(outcome, why)}
    return Record(case, pipeline, checks, date="2025-01-31", versions=VERSIONS, **more)


def test_the_page_has_a_row_per_class_and_a_note_per_reason(tmp_path: Path) -> None:
    needs = "SMC needs a stochastic sampler, and {}Scheduler on a flow model has none"
    records = [
        record("a:Flux", "FluxPipeline", "refused", needs.format("Euler")),
        record("a:Flux+ip", "FluxPipeline"),
        record("b:Sana", "SanaPipeline", "refused", needs.format("DPM")),
        record("c:Sd", "SdPipeline", "wrong", "the reward is not that of the output"),
        record("d:Old", "OldPipeline", "test limit", "offline"),
        Record("f:New", "NewPipeline", date="2025-01-31", versions=VERSIONS),
        Record("e", "", why="No|module", date="2025-02-01", versions=VERSIONS),
    ]
    for one in records:
        append(tmp_path / "found.jsonl", one)
    path = tmp_path / "families.md"
    start, end = page.PAGE.read_text().split("<!-- made by")[1].split("\n", 1)[0], "<!-- end"
    path.write_text(f"before\n<!-- made by{start}\nold\n{end} of conformance -->\nafter\n")
    page.write(load(tmp_path / "found.jsonl"), path)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert "7 test classes of 5 pipeline classes; torch 2; 2025-01-31 to 2025-02-01." in text
    assert "| SMC | 1 | 2 | 0 | 1 | 1 |" in text and "| identity | 5 | 0 | 0 | 0 | 0 |" in text
    smc = 2 + list(METHODS).index("SMC")
    rows = {row.split("|")[1].strip(): row.split("|") for row in text.splitlines() if "|" in row}
    cells = {name: row[smc].strip() for name, row in rows.items() if name.endswith("Pipeline`")}
    assert cells == {
        "`NewPipeline`": "",  # the run is older than the method
        "`FluxPipeline`": "[1]",
        "`OldPipeline`": "– [2]",
        "`SanaPipeline`": "[1]",
        "`SdPipeline`": "**wrong** [3]",
    }
    assert "1. (method) needs a stochastic sampler, and (scheduler) on a flow" in text
    assert "- `e`: No\\|module" in text
    assert rows["`SdPipeline`"][2].strip() == "yes"


def test_the_page_refuses_mixed_versions_and_a_page_without_a_place() -> None:
    one = record("a", "FluxPipeline")
    other = Record("b", "FluxPipeline", versions={"torch": "3"})
    with pytest.raises(ValueError, match="several versions"):
        page.made_with([one, other])
    with pytest.raises(ValueError, match="no block"):
        page.rendered("nothing", {})


def test_a_note_keeps_what_to_do() -> None:
    said = "FluxPipeline: images has shape (1, 2, 16), expected (B, 3, H, W): use strength=1"
    assert page.general(said) == (
        "(pipeline): images has shape (N, N, N), expected (B, 3, H, W): use strength=1"
    )


def test_the_committed_page_agrees_with_the_committed_results() -> None:
    text = page.PAGE.read_text()
    assert page.rendered(text, load(command.OUT)) == text
