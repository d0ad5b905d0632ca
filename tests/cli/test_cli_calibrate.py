"""`steer calibrate` on a tiny pipeline: its files, going on, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import build
from typer.testing import CliRunner, Result

from steer import Plans
from steer.cli.app import app


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    build("sd").save_pretrained(folder / "pipe")
    (folder / "prompts.txt").write_text("a red circle\na blue square\ntwo stars\na line\n")
    return folder


def run(world: Path, out: Path, *more: str) -> Result:
    words = ["calibrate", world / "prompts.txt", "--pipeline", world / "pipe", "--n", "2"]
    words += ["--steps", "4", "--reward", "compressibility", "--device", "cpu", "--out", out, *more]
    return CliRunner().invoke(app, [str(word) for word in words])


def test_it_writes_plans_and_goes_on(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(world, out)
    assert first.exit_code == 0, first.output
    assert "plain calls of denoising" in first.output and "Plans for Stable" in first.output
    assert {path.name for path in out.iterdir()} >= {"plans.json", "plans.html", "pilots.jsonl"}
    plans = Plans.load(out / "plans.json")
    assert (plans.steps, plans.n, plans.reward, plans.model) == (4, 2, "compressibility", "pipe")
    paid = (out / "pilots.jsonl").read_bytes()
    (out / "plans.json").unlink()
    (out / "pilots.jsonl").write_bytes(paid[: len(paid) // 2])
    assert run(world, out).exit_code == 0
    assert Plans.load(out / "plans.json") == plans
    assert (out / "pilots.jsonl").read_bytes() == paid


def test_decoders_of_previews(world: Path, tmp_path: Path) -> None:
    result = run(world, tmp_path / "out", "--preview", "linear")
    assert result.exit_code == 0, result.output
    plans = Plans.load(tmp_path / "out" / "plans.json")
    assert {decoder.name for decoder in plans.decoders} == {"", "linear"}
    assert "preview='linear'" in result.output


def test_it_refuses(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "few.txt").write_text("a\nb\n")
    few = CliRunner().invoke(app, ["calibrate", str(tmp_path / "few.txt"), "--out", str(out)])
    assert few.exit_code == 2 and "prompts: 2 of them" in few.stderr and not out.exists()
    for words, named in (
        (("--n", "1"), "n=1"),
        (("--reward", "nothing"), "nothing"),
        (("--judge", "nothing"), "nothing"),
        (("--dtype", "int8"), "dtype='int8'"),
        (("--window", "0.5"), "--window 0.5: two fractions of the steps"),
        (("--window", "0.9-0.2"), "between"),
        (("--window", "0.5-0.9"), "'compressibility' is not differentiable"),
        (("--preview", "no/such"), "no/such"),
    ):
        result = run(world, tmp_path / "out", *words)
        assert result.exit_code == 2 and named in " ".join(result.stderr.split()), result.output
    gone = CliRunner().invoke(app, ["calibrate", str(tmp_path / "gone.txt"), "--out", str(out)])
    assert gone.exit_code == 2 and "gone.txt" in gone.stderr


@pytest.mark.parametrize("name", ["plans.json", "plans.html", "pilots.jsonl"])
def test_files_of_others_are_not_replaced(world: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    result = run(world, tmp_path)
    assert result.exit_code == 2 and name in result.stderr, result.output
    assert (tmp_path / name).read_text() == "mine"
