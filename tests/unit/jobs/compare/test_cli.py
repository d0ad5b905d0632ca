"""The command: its plan, its errors in one line, its exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arena import PROMPTS
from families import build
from typer.testing import CliRunner, Result

from steer.cli.app import app
from steer.jobs.compare.arms import Painter


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`steer compare` on a plan written to a file, with a tiny pipeline in the hub's place."""
    monkeypatch.setattr("steer.jobs.compare.arms.load_pipeline", lambda *_: build("sd"))
    monkeypatch.chdir(tmp_path)

    def call(*options: str, **more: Any) -> Result:
        plan = {"pipeline": "tiny/sd", "prompts": PROMPTS[:2], "steps": 3, "device": "cpu"}
        plan |= {"reward": "test-redder", "judges": ["test-evenness"]}
        plan |= {"arms": ["base", {"name": "best", "compute": 2}], **more}
        (tmp_path / "plan.yaml").write_text(repr(plan))  # a Python literal is YAML, too
        return CliRunner().invoke(app, ["compare", "plan.yaml", *options], catch_exceptions=False)

    return call


def one_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_from_the_file_to_the_page(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "4 images in 2 arms, in plan" in result.stdout
    assert "best over base" in result.stdout and "won" in result.stdout
    assert (tmp_path / "plan" / "report.html").is_file()
    again = invoke("--out", "plan")
    assert again.exit_code == 0 and "best over base" in again.stdout
    assert "steps was 3, now 4" in one_line(invoke(steps=4))


def test_the_plan_alone(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("--check", "--out", "results")
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    assert "2 arms x 2 prompts (list) x 1 seeds = 4 images" in said and "into results" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"prompts": "none.txt"}, "steer: prompts='none.txt': neither a file nor a set"),
        ({"arms": ["a", "a"]}, "the name 'a' stands there twice"),
        ({"sedes": 2}, "did you mean 'seeds'"),
        ({"reward": "test-reder"}, "test-reder"),
        ({"scheduler": "DDIM"}, "not a scheduler of diffusers"),
    ],
)
def test_errors_are_one_line(invoke: Invoke, more: dict[str, Any], said: str) -> None:
    assert said in one_line(invoke(**more))


def test_an_interrupt_keeps_what_is_done(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = Painter.draw, []

    def draw(self: Painter, *args: Any) -> Any:
        drawn.append(args)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Painter, "draw", draw)
    result = invoke()
    assert result.exit_code == 130 and "the same command continues" in result.stderr
    assert len(list((tmp_path / "plan" / "images").rglob("*.png"))) == 2
    assert invoke().exit_code == 0 and len(drawn) == 5


def test_a_pipeline_without_guidance(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build("sd")

    class Unguided(type(pipe)):
        def __call__(self, prompt: str, num_inference_steps: int = 3) -> None: ...

    pipe.__class__ = Unguided
    monkeypatch.setattr("steer.jobs.compare.arms.load_pipeline", lambda *_: pipe)
    assert "guidance_scale: Unguided takes no 'guidance_scale'" in one_line(
        invoke(guidance_scale=3.0)
    )
