"""Every script in examples/ runs; small random pipelines of the same classes are the downloads."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_runs_as_it_stands(script: str, offline: Path) -> None:
    names = runpy.run_path(str(EXAMPLES / script))
    assert names["out"].rewards
    picture = offline / f"{Path(script).stem}.png"
    assert script == "wan.py" or picture.stat().st_size > 0
