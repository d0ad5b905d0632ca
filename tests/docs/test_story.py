"""examples/story.ipynb runs from top to bottom, offline, and tells what it says."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from diffusers import StableDiffusionPipeline
from nbclient import NotebookClient


STORY = Path(__file__).parents[2] / "examples" / "story.ipynb"


def printed(cell: Any) -> str:
    return "".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream")


def test_it_is_committed_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(STORY, as_version=4).cells if "outputs" in cell]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


def check(last: str, folder: Path) -> None:
    before, after = (float(word) for word in last.splitlines()[0].split()[-3::2])
    assert after > before  # of the reward that is optimised; a search promises no more
    assert "oracle (truth)" in last
    assert (folder / "report.html").stat().st_size > 10_000


def test_the_story_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cell by cell in this process, with fewer steps."""
    call = StableDiffusionPipeline.__call__
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", hurried(call))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in nbformat.read(STORY, as_version=4).cells:
        if cell.cell_type == "code":
            capsys.readouterr()
            exec(compile(cell.source, STORY.name, "exec"), names)
    check(capsys.readouterr().out, tmp_path)


def hurried(call: Any) -> Any:
    @functools.wraps(call)
    def quick(*args: Any, **more: Any) -> Any:
        return call(*args, **{"num_inference_steps": 8, **more})

    return quick


@pytest.mark.exhaustive
def test_the_story_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(STORY.parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(STORY, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    check(printed(notebook.cells[-1]), tmp_path)
