"""examples/story.ipynb runs from top to bottom, offline, and tells what it says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient


STORY = Path(__file__).parents[2] / "examples" / "story.ipynb"


def printed(cell: Any) -> str:
    return "".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream")


def test_it_is_committed_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(STORY, as_version=4).cells if "outputs" in cell]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
def test_the_story_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(STORY.parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(STORY, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    last = printed(notebook.cells[-1])
    before, after = (float(word) for word in last.splitlines()[0].split()[-3::2])
    assert after > before  # of the reward that is optimised; a search promises no more
    assert "oracle (truth)" in last
    assert (tmp_path / "report.html").stat().st_size > 10_000
