"""The command: files, resuming, exit codes, messages. The engine is a stand-in, quick and exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import steer.jobs.sampling
from steer.cli.app import app
from steer.core.files import png
from steer.core.files.run_folder import RunFolder
from steer.core.ledger import Ledger
from steer.core.trace import Trace
from steer.methods import BestOfN, Gate, Prune
from steer.methods.text import parse_method
from steer.rewards import register_reward
from steer.rewards.function import FunctionReward


PROMPTS = ["a red circle", "two blue squares", "three <b>green</b> triangles"]


@register_reward("test-brightness")
def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3))


class Pipe:
    """Draws 16x16 noise from the generator, as a plain call."""

    scheduler = SimpleNamespace()
    interrupt_at: int | None = None

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bar: dict[str, Any] = {}

    def set_progress_bar_config(self, **options: Any) -> None:
        self.bar = options

    def __call__(
        self,
        prompt: str,
        num_inference_steps: int = 7,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        guidance_scale: float = 7.5,
    ) -> SimpleNamespace:
        self.calls.append(prompt)
        return SimpleNamespace(images=[draw(generator) for _ in range(num_images_per_prompt)])


def draw(generator: torch.Generator | None) -> Image.Image:
    pixels = torch.rand(16, 16, 3, generator=generator)
    return Image.fromarray((pixels * 255).to(torch.uint8).numpy())


class Guided:
    """Best of two by brightness, with the result that a guided pipeline gives."""

    def __init__(self, pipe: Pipe, reward: Any, **options: Any) -> None:
        self.pipe, self.reward, self.options, self.count = pipe, reward, options, 0

    def __call__(self, prompt: str, generator: torch.Generator, **options: Any) -> SimpleNamespace:
        if self.count == self.pipe.interrupt_at:
            raise KeyboardInterrupt
        self.count += 1
        images = [draw(generator) for _ in range(2)]
        rewards = [float(self.reward([image], [prompt])[0]) for image in images]
        best = max((0, 1), key=lambda k: rewards[k])
        trace = Trace(keep_images=True)
        trace.log("start", particle=[0, 1])
        trace.log("score", particle=[0, 1], reward=torch.tensor(rewards), preview=False)
        trace.log("final", chosen=[best])
        trace.images = {(0, k, -1): np.asarray(image) for k, image in enumerate(images)}
        steps = options["num_inference_steps"]
        ledger = Ledger(denoiser_rows=2 * steps, decodes=2, reward_calls=2, seconds={"total": 0.1})
        report = SimpleNamespace(method=BestOfN(2), steps=steps, trace=trace, ledger=ledger)
        report.stopped = False
        report.chosen, report.base_reward = [(0, best)], [rewards[0]]
        report.judges, report.base_judges = {"judge": [0.5]}, {}
        return SimpleNamespace(
            images=[images[best]], rewards=[rewards[best]], accepted=[True], report=report
        )


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    made = Pipe()
    monkeypatch.setattr(steer.jobs.sampling, "load_pipeline", lambda *_: made)
    monkeypatch.setattr(steer.jobs.sampling, "guided", Guided)
    return made


def sample(out: Path, *more: str, prompts: list[str] = PROMPTS) -> Result:
    words = ["sample", *prompts, "--reward", "test-brightness", "--out", str(out), *more]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def one_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_sample_writes_everything(tmp_path: Path, pipe: Pipe) -> None:
    result = sample(tmp_path, "--seed", "5", "--judge", "test-brightness")
    assert result.exit_code == 0
    assert "Mean reward" in result.stdout and "Report:" in result.stdout
    data = json.loads((tmp_path / "run.json").read_text())
    assert data["status"] == "finished" and len(data["prompts"]) == 3
    assert data["arguments"]["seed"] == 5 and data["configuration"]["method"] == "BestOfN(n=2)"
    assert {"torch", "diffusers"} <= set(data["versions"])
    for index, entry in enumerate(data["prompts"]):
        assert entry["seed"] == 5 + index and entry["steps"] == 20
        told = png.read(tmp_path / entry["images"][0])
        assert told["prompt"] == PROMPTS[index] and told["seed"] == 5 + index
        assert told["reward"] == entry["rewards"][0]
        assert told["arguments"]["compute"] == 4.0
        assert png.read(tmp_path / entry["base"]["image"])["method"] is None
    html = (tmp_path / "report.html").read_text()
    assert "three &lt;b&gt;green&lt;/b&gt; triangles" in html


def test_the_plain_image_is_particle_zero(tmp_path: Path, pipe: Pipe) -> None:
    """Drawn again only where the search chose another particle; the same pixels either way."""
    sample(tmp_path)
    for entry in RunFolder.load(tmp_path).entries:
        chosen = entry["trace"][-1]["chosen"][0]
        assert (entry["prompt"] in pipe.calls) == (chosen != 0)
        with Image.open(tmp_path / entry["base"]["image"]) as image:
            want = draw(torch.Generator("cpu").manual_seed(entry["seed"]))
            assert image.convert("RGB").tobytes() == want.tobytes()


def test_no_base(tmp_path: Path, pipe: Pipe) -> None:
    assert sample(tmp_path, "--no-base").exit_code == 0
    assert not pipe.calls and RunFolder.load(tmp_path).entries[0]["base"] is None


def test_interrupting_and_continuing(tmp_path: Path, pipe: Pipe) -> None:
    """Two interruptions give, in the end, what one uninterrupted run gives."""
    sample(tmp_path / "whole")
    out = tmp_path / "parts"
    for at, finished in ((1, 1), (1, 2)):
        pipe.interrupt_at = at
        result = sample(out)
        assert result.exit_code == 130 and f"{finished} of 3 prompts" in result.stdout
        run = RunFolder.load(out)
        assert run.status == "interrupted" and len(run.entries) == finished
        assert all((out / e["images"][0]).is_file() for e in run.entries)
        assert (out / "report.html").is_file()
    pipe.interrupt_at = None
    result = sample(out)
    assert result.exit_code == 0 and "Continuing: 2 of 3" in result.stdout
    whole, parts = RunFolder.load(tmp_path / "whole"), RunFolder.load(out)
    assert parts.status == "finished"
    for a, b in zip(whole.entries, parts.entries, strict=True):
        assert (a["seed"], a["rewards"], a["trace"]) == (b["seed"], b["rewards"], b["trace"])
        pixels = [
            Image.open(run.folder / e["images"][0]).tobytes() for run, e in ((whole, a), (parts, b))
        ]
        assert pixels[0] == pixels[1]


def test_a_finished_run_is_left_alone(tmp_path: Path, pipe: Pipe) -> None:
    sample(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    result = sample(tmp_path)
    assert result.exit_code == 0 and "nothing to do" in result.stdout
    assert (tmp_path / "run.json").read_bytes() == before


def test_other_arguments_in_the_same_folder(tmp_path: Path, pipe: Pipe) -> None:
    sample(tmp_path)
    assert "--compute was 4.0, now 8.0" in one_line(sample(tmp_path, "--compute", "8"))
    assert "prompts was" in one_line(sample(tmp_path, prompts=["another"]))
    assert len(RunFolder.load(tmp_path).entries) == 3


def test_bad_input_leaves_no_run_behind(tmp_path: Path, pipe: Pipe) -> None:
    assert "'test-brigthness' is unknown" in one_line(
        sample(tmp_path, "--reward", "test-brigthness", prompts=["x"])
    )
    assert sample(tmp_path).exit_code == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--compute", "0.5"], "compute=0.5"),
        (["--steps", "0"], "steps=0"),
        (["--images-per-prompt", "0"], "images_per_prompt=0"),
        (["--method", "BestOfM(3)"], "did you mean 'BestOfN'"),
        (["--method", "gate"], "write its arguments out (method, threshold"),
        (["--method", "Prune(8)", "--compute", "4"], "has its own cost"),
        (["--method", "BestOfN(n=0)"], "BestOfN(n=0)"),
        (["--method", "BestOfN(__import__('os'))"], "is unknown"),
        (["--method", "BestOfN(1 +"], "cannot be read"),
        (["--reward", "a=b"], "is not name=weight"),
        (["--device", "abacus"], "device='abacus'"),
        (["--dtype", "float8"], "dtype='float8'"),
        (["--prompts-file", "/nowhere.txt"], "/nowhere.txt"),
    ],
)
def test_bad_arguments(tmp_path: Path, pipe: Pipe, more: list[str], words: str) -> None:
    assert words in one_line(sample(tmp_path, *more))


def test_bad_folders_and_no_prompts(tmp_path: Path, pipe: Pipe) -> None:
    (tmp_path / "file").write_text("")
    assert "not a folder" in one_line(sample(tmp_path / "file"))
    (tmp_path / "run.json").write_text("{")
    assert "cannot be read" in one_line(sample(tmp_path))
    assert "no prompts" in one_line(sample(tmp_path / "new", prompts=[]))
    (tmp_path / "empty").mkdir()
    line = one_line(CliRunner().invoke(app, ["report", str(tmp_path / "empty")]))
    assert "holds no run.json" in line


@pytest.mark.parametrize("name", ["no-such-thing", "folder", "broken"])
def test_unknown_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    line = one_line(sample(tmp_path / "out", "--pipeline", name))
    assert f"pipeline='{name}'" in line
    assert not (tmp_path / "out").exists()


def test_prompts_from_a_file(tmp_path: Path, pipe: Pipe) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\n  two  \n")
    out = tmp_path / "out"
    sample(out, "--prompts-file", str(tmp_path / "prompts.txt"), prompts=["zero"])
    assert [e["prompt"] for e in RunFolder.load(out).entries] == ["zero", "one", "two"]


def test_report_is_rebuilt(tmp_path: Path, pipe: Pipe) -> None:
    sample(tmp_path)
    want = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0 and (tmp_path / "report.html").read_text() == want


def test_rewards_are_listed() -> None:
    result = CliRunner().invoke(app, ["rewards"])
    assert result.exit_code == 0
    assert {"hpsv2", "shapes", "test-brightness"} <= set(result.stdout.split())


def test_methods_from_text() -> None:
    assert parse_method("best-of-n", 6.5) == BestOfN(6)
    assert parse_method("BestOfN(n=16)") == parse_method("best_of_n(16)") == BestOfN(16)
    assert parse_method("prune", 4, 20) == Prune.for_compute(4, 20)
    text = "Prune(start=8, keep=(4, 2), at=(0.25, 0.5))"
    assert parse_method(text) == Prune(start=8, keep=(4, 2), at=(0.25, 0.5))
    when = steer.every(4) & steer.between(0.25, 0.75)
    text = "smc(8, lam=3, when=every(4) & between(0.25, 0.75))"
    assert parse_method(text) == steer.SMC(8, lam=3, when=when)
    with pytest.raises(ValueError, match="not a method"):
        parse_method("at(0.5)")
    assert parse_method("gate(best-of-n(4), threshold=-0.5)") == Gate(BestOfN(4), threshold=-0.5)


def test_the_command_starts_without_torch() -> None:
    needed = "steer.cli.app, steer.jobs.sample_job, steer.jobs.score_job"
    code = f"import sys, {needed}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_demo_without_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steer import shapes
    from steer.cli import demo

    monkeypatch.setattr(shapes, "weights_folder", lambda: tmp_path / "none")
    with pytest.raises(SystemExit) as stop:
        demo.run_main(["--out", str(tmp_path / "demo")])
    assert stop.value.code == 2


def test_demo_with_a_stand_in(
    tmp_path: Path, pipe: Pipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = FunctionReward(brightness, name="shapes")
    monkeypatch.setattr(steer.jobs.sampling.RewardLoader, "load", lambda *_: made)
    from steer.cli import demo

    with pytest.raises(SystemExit) as stop:
        demo.run_main(["--out", str(tmp_path), "--captions", "3", "--compute", "2"])
    assert stop.value.code == 0
    assert {"report.html", "grid.png", "run.json"} <= {p.name for p in tmp_path.iterdir()}
    assert "all met" in capsys.readouterr().out
