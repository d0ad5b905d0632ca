"""The command on a real pipeline from a folder, with the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import build, redness
from PIL import Image
from pools import made_plans
from tuned_pairs import twin
from typer.testing import CliRunner, Result

from steer.cli.app import app
from steer.core.files import png
from steer.core.files.run_folder import RunFolder
from steer.jobs.pipelines import load_pipeline
from steer.rewards import register_reward


STEPS = 10
PROMPTS = ["a red circle", "two blue squares"]


class Redness:
    """Counts its calls, and stops the program at one of them when told to."""

    calls = 0
    stop_at: int | None = None

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        type(self).calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return redness(images, prompts)


register_reward("test-redness")(Redness())
register_reward("test-contrast")(lambda images, prompts: images.std((1, 2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    build("sd", "ddim").save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    Redness.calls, Redness.stop_at = 0, None
    yield
    Redness.stop_at = None


def sample(folder: Path, out: Path, *more: str) -> Result:
    words = ["sample", *PROMPTS, "--pipeline", str(folder), "--reward", "test-redness"]
    words += ["--steps", str(STEPS), "--out", str(out), *more]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "method",
    ["", "prune", "BestOfN(4)", "Gate(BestOfN(2), threshold=100.0, max_rounds=2)"],
)
def test_methods_end_to_end(folder: Path, tmp_path: Path, method: str) -> None:
    more = ["--method", method] if method else []
    result = sample(folder, tmp_path, "--judge", "test-contrast", *more)
    assert result.exit_code == 0, result.output
    for entry in RunFolder.load(tmp_path).entries:
        assert entry["rewards"][0] >= entry["base"]["reward"] - 1e-3
        assert entry["ledger"]["denoiser_rows"] <= 4 * STEPS
        assert entry["accepted"] == (not method.startswith("Gate"))
        assert set(entry["judges"]) == set(entry["base"]["judges"]) == {"test-contrast"}
        told = png.read(tmp_path / entry["images"][0])
        assert told["seed"] == entry["seed"] and told["steps"] == STEPS
    html = (tmp_path / "report.html").read_text()
    assert html.count('class="thumb') >= 8 and "Held-out judge" in html


def test_several_judges_and_any_lane_width(folder: Path, tmp_path: Path) -> None:
    """Each judge is reported, plain image included; the lane width does not change the result."""
    found = {}
    for width in ("1", "4"):
        judges = ("--judge", "test-contrast", "--judge", "compressibility")
        result = sample(folder, tmp_path / width, "--lane-width", width, *judges)
        assert result.exit_code == 0, result.output
        run = RunFolder.load(tmp_path / width)
        assert run.data["arguments"]["judges"] == ["test-contrast", "compressibility"]
        found[width] = run.entries
    for narrow, wide in zip(found["1"], found["4"], strict=True):
        assert set(wide["judges"]) == set(wide["base"]["judges"]) == set(narrow["judges"])
        assert len(wide["judges"]) == 2
        assert wide["rewards"] == pytest.approx(narrow["rewards"], abs=5e-3)
    assert sample(folder, tmp_path / "x", "--lane-width", "0").exit_code == 2


def test_the_plain_image_is_the_pipelines_own(folder: Path, tmp_path: Path) -> None:
    assert sample(folder, tmp_path, "--seed", "3").exit_code == 0
    pipe = load_pipeline(str(folder), "cpu", torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for index, entry in enumerate(RunFolder.load(tmp_path).entries):
        generator = torch.Generator().manual_seed(3 + index)
        want = pipe(PROMPTS[index], num_inference_steps=STEPS, generator=generator).images[0]
        assert np.array_equal(pixels(tmp_path / entry["base"]["image"]), np.asarray(want))


def test_interrupted_inside_a_call(folder: Path, tmp_path: Path) -> None:
    """Stopped in the second prompt's search and continued: the same as never stopped."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert sample(folder, whole).exit_code == 0
    Redness.stop_at = Redness.calls - 1
    Redness.calls = 0
    assert sample(folder, parts).exit_code == 130
    assert RunFolder.load(parts).status == "interrupted" and len(RunFolder.load(parts).entries) == 1
    Redness.stop_at = None
    assert sample(folder, parts).exit_code == 0
    for a, b in zip(RunFolder.load(whole).entries, RunFolder.load(parts).entries, strict=True):
        assert (a["rewards"], a["trace"]) == (b["rewards"], b["trace"])
        for name in (*a["images"], a["base"]["image"]):
            assert np.array_equal(pixels(whole / name), pixels(parts / name))


def test_an_unusable_reward_is_one_line(folder: Path, tmp_path: Path) -> None:
    register_reward("test-nan")(lambda images, prompts: images.mean((1, 2, 3)) * float("nan"))
    result = sample(folder, tmp_path, "--reward", "test-nan")
    assert result.exit_code == 2
    assert "'test-nan' returned nan" in result.stderr
    assert "Traceback" not in result.stderr
    assert RunFolder.load(tmp_path).status == "failed"


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "unet"
    module: Any = twin(load_pipeline(str(folder), "cpu", torch.float32))
    module.save_pretrained(path)
    return path


def test_a_tuned_checkpoint_is_drawn_and_the_plain_image_stays_the_base(
    folder: Path, tuned: Path, tmp_path: Path
) -> None:
    plain = sample(folder, tmp_path / "plain", "--compute", "1")
    assert plain.exit_code == 0, plain.output
    result = sample(folder, tmp_path / "out", "--compute", "1", "--tuned", str(tuned))
    assert result.exit_code == 0, result.output
    base, both = RunFolder.load(tmp_path / "plain"), RunFolder.load(tmp_path / "out")
    for before, now in zip(base.entries, both.entries, strict=True):
        assert now["base"]["reward"] == pytest.approx(before["rewards"][0], abs=1e-3)
        assert now["base"]["image"] != now["images"][0]
        assert now["rewards"][0] != pytest.approx(before["rewards"][0], abs=1e-4)
    assert both.data["arguments"]["tuned"] == str(tuned)


def test_a_blend_counts_both_denoisers(folder: Path, tuned: Path, tmp_path: Path) -> None:
    both = ("--tuned", str(tuned), "--blend", "RLG(2.0)")
    named = sample(folder, tmp_path / "named", "--method", "best-of-n", "--compute", "4", *both)
    assert named.exit_code == 0, named.output
    for entry in RunFolder.load(tmp_path / "named").entries:
        assert entry["method"] == "BestOfN(n=2)"
        assert entry["ledger"]["equivalent_rows"] <= 4 * 2 * STEPS


def test_a_blend_that_is_none_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    result = sample(tmp_path / "nowhere", tmp_path / "out", "--blend", "RGL(2.0)")
    assert result.exit_code == 2
    assert "RGL" in result.output and "RLG" in result.output


def nan_in_plain_calls(pipe: Any) -> None:
    """A decoder that makes NaN in calls of the pipeline that no search sits in."""
    real = pipe.vae.decode

    def decode(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = real(z, *args, **kwargs)
        if "Steered" not in repr(pipe.scheduler):
            out[0][:] = float("nan")
        return out

    pipe.vae.decode = decode


def test_a_plain_image_of_nan_is_told_and_not_scored(tmp_path: Path) -> None:
    from steer.jobs.sample_job import SampleJob
    from steer.jobs.sampling import Sampler, draw_missing
    from steer.pipeline.report.page import write_report

    pipe = build("sd", "ddim")
    nan_in_plain_calls(pipe)
    given = {"pipeline": "x/y", "reward": "test-redness", "method": "best-of-n", "steps": 2}
    job = SampleJob(("a red circle",), seed=3, **given)
    run = RunFolder.create(tmp_path / "out", job.to_dict(), kind="sample", command="")
    with pytest.warns(UserWarning, match="plain image of 'a red circle' has NaN pixels"):
        list(draw_missing(run, Sampler(job, pipe)))
    (entry,) = run.entries
    assert entry["base"]["reward"] is None
    assert entry["rewards"][0] is not None
    assert "a red circle" in write_report(run).read_text()


def test_previews_by_a_cheaper_decoder(folder: Path, tmp_path: Path) -> None:
    pruning = "Prune(start=4, keep=(1,), at=(0.5,))"
    result = sample(folder, tmp_path / "a", "--method", pruning, "--preview", "linear")
    assert result.exit_code == 0, result.output
    assert [e["ledger"]["previews"] for e in RunFolder.load(tmp_path / "a").entries] == [4, 4]
    assert "Previews by another decoder" in (tmp_path / "a" / "report.html").read_text()
    result = sample(folder, tmp_path / "b", "--preview", "tiny")
    assert result.exit_code == 2
    assert "preview='tiny': no tiny autoencoder is known" in result.stderr


def test_plans_that_calibrate_wrote(folder: Path, tmp_path: Path) -> None:
    plans = made_plans("test-redness", STEPS)
    plans.save(tmp_path / "plans.json")
    given = ("--plans", str(tmp_path / "plans.json"), "--compute", "4")
    result = sample(folder, tmp_path / "a", *given)
    assert result.exit_code == 0, result.output
    planned = {repr(plan.method) for plan in plans.plans} | {"BestOfN(n=1)"}
    assert {e["method"] for e in RunFolder.load(tmp_path / "a").entries} <= planned
    result = sample(folder, tmp_path / "b", *given[:2], "--method", "best-of-n")
    assert result.exit_code == 2 and "plans choose the method" in result.stderr
    result = sample(folder, tmp_path / "b", "--plans", str(tmp_path / "none.json"))
    assert result.exit_code == 2 and "none.json" in result.stderr


def test_several_devices_draw_what_one_draws(folder: Path, tmp_path: Path) -> None:
    method = ("--method", "BestOfN(4)", "--lane-width", "2", "--no-base")
    for name, more in (("one", ()), ("two", ("--devices", "cpu,cpu"))):
        result = sample(folder, tmp_path / name, *method, *more)
        assert result.exit_code == 0, result.output
    one, two = (RunFolder.load(tmp_path / name) for name in ("one", "two"))
    for mine, theirs in zip(one.entries, two.entries, strict=True):
        assert mine["rewards"] == theirs["rewards"]
        assert np.array_equal(*(pixels(r.folder / mine["images"][0]) for r in (one, two)))
    assert two.data["arguments"]["devices"] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--devices", "cpu,"), "devices='cpu,': name each"),
        (("--devices", "auto,cpu"), "devices='auto,cpu': name each"),
        (
            ("--devices", "cpu,cpu", "--device", "cuda"),
            "the first of several is the pipeline's own",
        ),
        (("--devices", "cpu,nowhere"), "device='nowhere': not usable here"),
        (("--devices", "cpu,cpu", "--blend", "RLG(2.0)"), "with tuned or blend"),
        (("--devices", "cpu,cpu", "--ray", "local"), "--devices with --ray"),
    ],
)
def test_devices_that_do_not_fit(
    folder: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    result = sample(folder, tmp_path, *words)
    assert result.exit_code == 2 and told in " ".join(result.stderr.split()), result.output
