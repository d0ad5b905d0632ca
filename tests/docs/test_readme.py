"""The README shows only what works as typed."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from families import build
from typer.testing import CliRunner

from steer.cli.app import app


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TINY_HPS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_make_targets_are_what_ci_runs() -> None:
    shown = set(re.findall(r"^    make (\w+)$", README, re.MULTILINE))
    run = set(re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert shown == {"demo", "test"}
    assert shown <= run <= targets


def test_the_python_example_runs_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With weights of the same layouts in place of the downloads."""
    torch.manual_seed(0)
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": open_clip.CLIP(**TINY_HPS).state_dict()}, file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: TINY_HPS)
    monkeypatch.setattr(
        StableDiffusionPipeline, "from_pretrained", lambda *_, **__: build("sd", "ddim")
    )
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "best.png").stat().st_size > 0
    assert "denoiser_rows" in capsys.readouterr().out


def test_the_shell_example_runs_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = re.findall(r"^    steer (sample .*)$", README, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "first"
    assert (folder / "report.html").exists()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_the_table_is_the_committed_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    show = importlib.import_module("show")
    assert show.steering_table(show.load("steering")) in README
