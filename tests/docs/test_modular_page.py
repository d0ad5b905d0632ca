"""The page on modular pipelines runs as typed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
from families.modular import BLOCKS, classic_of, modular_of

from steer.driver.modular.adapted import resolves


PAGE = Path(__file__).parents[2] / "docs" / "modular.md"


@pytest.mark.skipif(
    not resolves() or not hasattr(diffusers, BLOCKS["flux"]), reason="an older diffusers"
)
def test_the_page_runs_as_typed(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = modular_of("flux", classic_of("flux"))
    kind = diffusers.ModularPipeline
    monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pipe)
    monkeypatch.setattr(kind, "load_components", lambda *_, **__: None)
    monkeypatch.setattr(type(pipe), "default_sample_size", 8)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["out"].rewards and (offline / "fox.png").stat().st_size > 0
