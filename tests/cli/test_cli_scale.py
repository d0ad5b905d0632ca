"""`steer scale`, and `--scale` of the commands that take its file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from families import build
from typer.testing import CliRunner, Result

import steer
from steer.cli.app import app
from steer.pipeline import fit_scales
from steer.rewards import Scales


PROMPTS = ["a red circle", "two blue squares"]
REWARD = "compressibility=1,incompressibility=0.5"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    build("sd").save_pretrained(folder / "pipe")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    made = run("scale", folder / "prompts.txt", "--reward", REWARD, "--each", 3, *settings(folder))
    assert made.exit_code == 0, made.output
    return folder


def settings(world: Path) -> list[Any]:
    return ["--pipeline", world / "pipe", "--steps", 3, "--device", "cpu", *out(world)]


def out(world: Path) -> list[Any]:
    return ["--out", world / "scales.json"]


def run(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def sample(world: Path, folder: Path, *more: Any) -> Result:
    words = [*settings(world)[:-2], "--method", "BestOfN(2)", "--no-base", "--out", folder]
    return run("sample", PROMPTS[0], *words, *more)


def test_the_file_is_that_of_fit_scales(world: Path) -> None:
    scales = Scales.load(world / "scales.json")
    assert [own.reward for own in scales] == ["compressibility", "incompressibility"]
    guided = steer.guided(build("sd"), REWARD)
    again = fit_scales(guided, PROMPTS, each=3, num_inference_steps=3)
    for own, other in zip(scales, again, strict=True):
        assert dict(own.prompts) == dict(other.prompts)


def test_sample_is_steered_on_the_scale(world: Path, tmp_path: Path) -> None:
    scales = world / "scales.json"
    found = sample(world, tmp_path / "a", "--reward", REWARD, "--scale", scales)
    assert found.exit_code == 0, found.output
    entry = json.loads((tmp_path / "a" / "run.json").read_text())["prompts"][0]
    (score,) = [row for row in entry["trace"] if row["event"] == "score" and not row["preview"]]
    z = {name.partition(" ")[0]: values for name, values in score["parts"].items()}
    assert set(score["parts"]) == {f"{name} (z by prompt)" for name in z}
    mixed = [a + 0.5 * b for a, b in zip(*z.values(), strict=True)]
    assert score["reward"] == pytest.approx(mixed, abs=1e-5)
    # the image on the disk, through the reward and the scale by hand
    image = tmp_path / "a" / "images" / "0000-0.png"
    table = run("score", image, "--reward", "compressibility", "--csv", tmp_path / "raw.csv")
    assert table.exit_code == 0, table.output
    raw = float(_row(tmp_path / "raw.csv")["compressibility"])
    own = Scales.load(scales)[0]
    expected = float(own.of([raw], PROMPTS[0])[0])
    words = ["--reward", "compressibility", "--scale", scales, "--csv", tmp_path / "z.csv"]
    assert run("score", image, *words).exit_code == 0
    assert float(_row(tmp_path / "z.csv")["compressibility"]) == pytest.approx(expected, abs=1e-4)


def _row(path: Path) -> dict[str, str]:
    with path.open() as file:
        (row,) = csv.DictReader(file)
    return row


def test_another_file_is_another_run(world: Path, tmp_path: Path) -> None:
    scales = tmp_path / "scales.json"
    scales.write_bytes((world / "scales.json").read_bytes())
    more = ["--reward", REWARD, "--scale", scales]
    assert sample(world, tmp_path / "a", *more).exit_code == 0
    scales.write_text(scales.read_text() + " ")
    again = sample(world, tmp_path / "a", *more)
    assert again.exit_code == 2 and "--scale was" in " ".join(again.stderr.split())


@pytest.mark.parametrize(
    ("prompt", "reward", "file", "named"),
    [
        ("a fish", REWARD, "scales.json", "prompt='a fish': the scale of 'compressibility' has 2"),
        (PROMPTS[0], "shapes", "scales.json", "no scale is of reward 'shapes'"),
        (PROMPTS[0], f"rank({REWARD})", "scales.json", "a scale cannot be held against reward"),
        (PROMPTS[0], REWARD, "prompts.txt", "prompts.txt': cannot be read (Expecting"),
        (PROMPTS[0], REWARD, "nope.json", "cannot be read (No such file or directory); write one"),
    ],
)
def test_a_wrong_one_is_one_sentence_before_anything_is_drawn(
    world: Path, tmp_path: Path, prompt: str, reward: str, file: str, named: str
) -> None:
    words = [*settings(world)[:-2], "--out", tmp_path / "a", "--method", "BestOfN(2)"]
    found = run("sample", prompt, "--reward", reward, "--scale", world / file, *words)
    said = " ".join(found.stderr.split())
    assert found.exit_code == 2 and named in said and "Traceback" not in said
    assert not (tmp_path / "a" / "images").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--each", 1], "each=1: plain images per prompt, at least 2"),
        (["--unit", "metres"], "unit='metres': must be one of 'z', 'percentile'"),
        (["--unknown", "zero"], "unknown='zero': must be one of 'raise', 'global'"),
        (["--steps", 0], "steps=0: must be a whole number"),
        (["--reward", "rank(compressibility,shapes)"], "a scale cannot be held against"),
        (["--out", "scales.txt"], "--out 'scales.txt': name a .json file"),
    ],
)
def test_it_refuses(world: Path, tmp_path: Path, more: list[Any], named: str) -> None:
    words = ["--reward", "compressibility", *settings(world)[:-2], "--out", tmp_path / "s.json"]
    found = run("scale", world / "prompts.txt", *words, *more)
    assert found.exit_code == 2 and named in " ".join(found.stderr.split())
    assert not (tmp_path / "s.json").exists()
