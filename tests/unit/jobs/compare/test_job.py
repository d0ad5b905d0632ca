"""Whole comparisons on a tiny pipeline: resumed, killed, refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arena import PROMPTS, compare, comparison, contents, forked
from families import build
from PIL import Image

from steer.core.errors import ComparisonError, FolderError, RewardError
from steer.core.files import png
from steer.core.seeds import row_seed
from steer.jobs.compare import store as stores
from steer.jobs.compare.arms import effort
from steer.jobs.compare.config import Arm
from steer.jobs.compare.job import CompareJob
from steer.jobs.compare.store import Unit
from steer.rewards import Scale, Scales


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "one"
    assert forked(lambda: compare(folder)) == 0
    return folder


def scores(folder: Path) -> list[dict[str, str]]:
    """The rows of scores.csv, but for the time they took."""
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def pixels(folder: Path) -> dict[str, bytes]:
    """The pixels of the images in a folder; their files say how they were drawn, too."""
    return {path.name: Image.open(path).tobytes() for path in sorted(folder.glob("*.png"))}


def findings(folder: Path) -> dict[str, Any]:
    """results.json, but for when and how fast."""
    found = json.loads((folder / "results.json").read_text())
    for arm in found["arms"]:
        del arm["cost"]["seconds"], arm["cost"]["peak_bytes"]
    return {k: v for k, v in found.items() if k not in ("when", "command")}


def test_everything_is_written(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"report.html", "results.json", "arms.csv", "pairs.csv", "scores.csv"} <= names
    rows = scores(finished)
    assert len(rows) == 12 and {row["arm"] for row in rows} == {"base", "best"}
    assert all((finished / row["image"]).is_file() for row in rows)
    found = findings(finished)
    assert [arm["cost"]["multiple"] for arm in found["arms"]] == [1.0, 2.0]
    assert [pair["arm"] for pair in found["pairs"]] == ["best", "best"]
    gap = found["pairs"][0]
    assert gap["reward"] == "test-redder" and gap["difference"]["mean"] >= 0
    assert gap["losses"] == 0  # the best of two that hold the plain call's image cannot lose


def test_the_base_arm_is_the_plain_pipeline(finished: Path) -> None:
    pipe = build("sd")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(row_seed(3, 1))
    plain = pipe(PROMPTS[1], num_inference_steps=3, guidance_scale=3.0, generator=generator)
    with Image.open(finished / "images" / "base" / "00001-s3.png") as image:
        assert image.tobytes() == plain.images[0].tobytes()


def test_images_say_where_they_come_from(finished: Path) -> None:
    data = png.read(finished / "images" / "best" / "00002-s0.png")
    assert data["prompt"] == PROMPTS[2] and data["method"] == "BestOfN(n=2)"
    assert data["arm"]["name"] == "best" and data["comparison"]["steps"] == 3


def test_batches_are_fixed_runs(finished: Path, tmp_path: Path) -> None:
    """Four images a call: made again whole where one is missing, with the calls' costs."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert forked(lambda: compare(one, images_per_call=4)) == 0
    shutil.copytree(one, two)
    for cell, alone in zip(scores(one), scores(finished), strict=True):
        assert float(cell["test-redder"]) == pytest.approx(float(alone["test-redder"]), abs=0.02)
        assert float(cell["equivalent_rows"]) == float(alone["equivalent_rows"])
    (two / "images" / "best" / "00001-s0.png").unlink()
    assert units(CompareJob(comparison(images_per_call=4), two)) == [Unit("best", 1, 0)]
    assert forked(lambda: compare(two, images_per_call=4)) == 0
    assert contents(one, "images") == contents(two, "images")
    costs = [arm["cost"] for arm in findings(one)["arms"]]
    alone_costs = [arm["cost"] for arm in findings(finished)["arms"]]
    assert [c["multiple"] for c in costs] == [1.0, 2.0]
    for kind in ("decodes", "reward_calls"):
        assert [c[kind] for c in costs] == [c[kind] for c in alone_costs]


@pytest.mark.sample(1, 3)
@pytest.mark.parametrize("when", [1, 4, 13, 26])
def test_killed_and_continued(finished: Path, tmp_path: Path, when: int) -> None:
    """Killed at the moment of a rename, with a whole temporary file beside: nothing is torn."""
    folder = tmp_path / "killed"

    def killed() -> None:
        real, calls = os.replace, iter(range(1, 1000))

        def replace(*paths: Any) -> None:
            if next(calls) == when:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*paths)

        os.replace = replace  # type: ignore[assignment]
        compare(folder)

    assert forked(killed) == -signal.SIGKILL
    for path in folder.rglob("[!.]*.json"):
        assert stores.unseal(path) is not None
    assert forked(lambda: compare(folder)) == 0
    assert contents(folder, "images") == contents(finished, "images")
    assert scores(folder) == scores(finished)
    assert not list(folder.rglob("*.tmp"))


def units(run: CompareJob) -> list[Unit]:
    return [unit for some in run.missing().values() for unit in some]


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(finished, tmp_path / "copy"))


def test_only_what_is_missing_is_drawn(finished: Path, copied: Path) -> None:
    assert not units(CompareJob(comparison(), copied))
    (copied / "images" / "best" / "00001-s0.png").unlink()
    image = copied / "images" / "base" / "00002-s3.png"
    image.write_bytes(image.read_bytes()[:100])
    assert units(CompareJob(comparison(), copied)) == [Unit("base", 2, 3), Unit("best", 1, 0)]
    compare(copied)
    assert contents(copied, "images") == contents(finished, "images")


def test_a_finished_run_loads_nothing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded a reward")

    monkeypatch.setattr("steer.jobs.reward_loader.RewardLoader.load", refuse)
    assert compare(copied) == copied / "report.html"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"guidance_scale": 4.0}, "guidance_scale was 3.0, now 4.0"),
        ({"seeds": [0, 4]}, r"seeds\[1\] was 3, now 4"),
        ({"prompts": [*PROMPTS[:2], "a cow"]}, r"texts\[2\]\[0\] was 'a <b>fish"),
        ({"prompts": PROMPTS[:2]}, "texts was"),
        (
            {"arms": ["base", {"name": "best", "method": "BestOfN(3)"}]},
            r"arms\[1\]\.method was 'BestOfN\(2\)', now 'BestOfN\(3\)'",
        ),
        ({"judges": ["test-redder:x"]}, r"judges\[0\] was 'test-evenness'"),
    ],
)
def test_changed_configurations_are_refused(copied: Path, more: dict, said: str) -> None:
    with pytest.raises(FolderError, match=said):
        CompareJob(comparison(**more), copied)


def test_the_page_may_change(copied: Path, tmp_path: Path) -> None:
    moved = tmp_path / "the_same.txt"
    moved.write_text("\n".join(PROMPTS))
    changed = comparison(title="Another title", show=1, prompts=str(moved))
    run = CompareJob(changed, copied)
    assert not units(run)
    page = run.finish()
    assert page is not None and "Another title" in page.read_text()


def test_a_full_disk_says_so_and_continues(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, calls = tmp_path / "full", os.replace, iter(range(1, 1000))

    def replace(*paths: Any) -> None:
        if next(calls) > 8:
            raise OSError(28, "No space left on device")
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(FolderError, match="the disk is full"):
        compare(folder)
    monkeypatch.undo()
    assert len(units(CompareJob(comparison(), folder))) == 9
    compare(folder)
    assert contents(folder, "images") == contents(finished, "images")


def test_arms_that_say_that_they_differ(tmp_path: Path) -> None:
    arms = [
        "base",
        {"name": "longer", "steps": 6, "differs": ["steps"]},
        {"name": "euler", "scheduler": "EulerDiscreteScheduler", "differs": ["scheduler"]},
        {"name": "unguided", "guidance_scale": 1.0, "differs": ["guidance_scale"]},
    ]
    compare(tmp_path / "out", arms=arms, prompts=PROMPTS[:2], seeds=1)
    found = findings(tmp_path / "out")
    assert [arm["cost"]["multiple"] for arm in found["arms"]] == [1.0, 2.0, 1.0, 1.0]
    assert [arm["cost"]["cfg_rows"] for arm in found["arms"]] == [2, 2, 2, 1]
    images = contents(tmp_path / "out", "images")
    assert len(set(images.values())) == 8
    assert "steps 6" in (tmp_path / "out" / "report.html").read_text()


def test_further_arguments_of_the_call(tmp_path: Path) -> None:
    for name, more in (("without", {}), ("with", {"call": {"negative_prompt": "a blue square"}})):
        compare(tmp_path / name, guidance_scale=5.0, **more)
    assert pixels(tmp_path / "without/images/base") != pixels(tmp_path / "with/images/base")
    with pytest.raises(ValueError, match=r"call\.shade: .* takes no 'shade'"):
        compare(tmp_path / "odd", call={"shade": 1})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"arms": ["a", {"name": "b", "method": "BestOfM(2)"}]}, "arm 'b'.*BestOfM"),
        ({"arms": ["a", {"name": "b", "method": "gate"}]}, "arm 'b'.*write its arguments out"),
        ({"judges": ["oracle"]}, "captions of the shapes world only"),
        ({"reward": "rank(test-redder,test-evenness)", "judges": []}, "name judges"),
        ({"prompts": []}, "no prompts"),
    ],
)
def test_bad_plans_leave_no_folder(tmp_path: Path, more: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare(tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"scheduler": "DDIMSchedular"}, "did you mean 'DDIMScheduler'"),
        ({"judges": ["test-even"]}, "test-even"),
        ({"diversity": "test-redder"}, "no image encoder"),
        ({"dtype": "float8"}, "dtype='float8'"),
    ],
)
def test_what_cannot_be_loaded(tmp_path: Path, more: dict, said: str) -> None:
    with pytest.raises((ComparisonError, ValueError), match=said):
        compare(tmp_path / "out", prompts=PROMPTS[:1], **more)


def test_a_relative_reward_is_judged_by_its_parts(tmp_path: Path) -> None:
    arms = ["base", {"name": "best", "compute": 2}]
    reward, judges = "rank(test-redder,test-evenness)", ["test-redder", "test-evenness"]
    compare(tmp_path, arms=arms, reward=reward, judges=judges, prompts=PROMPTS[:2], seeds=1)
    assert [r["name"] for r in findings(tmp_path)["rewards"]] == judges


def test_changed_weights_are_noticed(copied: Path) -> None:
    path = copied / "records" / "best" / "00000-s0.json"
    found = stores.unseal(path)
    assert found is not None
    stores._seal(path, {**found, "weights": "0" * 12})
    with pytest.raises(ComparisonError, match="the checkpoint changed between runs"):
        compare(copied)


def test_effort_counts_plain_calls_of_the_base() -> None:
    from steer.driver.denoisers import RLG
    from steer.methods import BestOfN

    assert effort(Arm(name="a"), 20) == {"method": BestOfN(1)}
    assert effort(Arm(name="a", compute=4), 20) == {"compute": 4}
    sized = {"method": BestOfN, "compute": 8}
    assert effort(Arm(name="a", method="best-of-n", compute=8), 20) == sized
    assert effort(Arm(name="a", method="best-of-n", compute=8), 20, RLG(2.0)) == sized
    assert effort(Arm(name="a", method="BestOfN(8)"), 20, RLG(2.0)) == {"method": BestOfN(8)}
    with pytest.raises(ComparisonError, match="one call of which costs 2"):
        effort(Arm(name="a", blend="RLG(2.0)", method="best-of-n", compute=1.5), 20, RLG(2.0))


def test_tuned_and_blended_arms(tmp_path: Path) -> None:
    """A tuned UNet on the disk: alone, blended, and a blend that is the base again."""
    tuned = build("sd")
    with torch.no_grad():
        for weight in tuned.unet.parameters():
            weight.mul_(1.1)
    tuned.unet.save_pretrained(tmp_path / "tuned" / "unet")
    source = str(tmp_path / "tuned")
    arms = [
        "base",
        {"name": "tuned", "tuned": source},
        {"name": "more", "tuned": source, "blend": "RLG(2.0)"},
        {"name": "none", "tuned": source, "blend": "RLG(0.0)"},
    ]
    compare(tmp_path / "out", arms=arms, prompts=PROMPTS[:2], seeds=1)
    found = findings(tmp_path / "out")
    assert [arm["cost"]["multiple"] for arm in found["arms"]][:3] == [1.0, 1.0, 2.0]
    assert found["arms"][1]["weights"] == found["arms"][2]["weights"] != None  # noqa: E711
    pixels = {}
    for arm in ("base", "tuned", "more", "none"):
        with Image.open(tmp_path / "out" / "images" / arm / "00000-s0.png") as image:
            pixels[arm] = np.asarray(image).astype(float)
    assert np.abs(pixels["base"] - pixels["none"]).max() <= 1
    assert np.abs(pixels["base"] - pixels["tuned"]).max() > 2
    assert np.abs(pixels["more"] - pixels["tuned"]).max() > 2
    alone = build("sd")
    alone.unet = tuned.unet
    alone.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(row_seed(0, 0))
    plain = alone(PROMPTS[0], num_inference_steps=3, guidance_scale=3.0, generator=generator)
    assert np.array_equal(pixels["tuned"], np.asarray(plain.images[0]).astype(float))


def test_images_of_nan_are_told_with_their_arm(tmp_path: Path) -> None:
    pipe = build("sd")
    real = pipe.vae.decode

    def decode(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = real(z, *args, **kwargs)
        out[0][:] = float("nan")
        return out

    pipe.vae.decode = decode
    job = CompareJob(comparison(), tmp_path / "out", pipe=pipe)
    with pytest.raises(RewardError, match=r"arm 'base': prompt 0 .* has NaN pixels"):
        list(job.draw(job.missing()))


def test_scores_are_the_same_bytes_after_a_kill_between_drawing_and_scoring(tmp_path: Path) -> None:
    more = {"reward": "shapes", "judges": ["shapes-clip"], "prompts": ["a red circle", "two rings"]}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert forked(lambda: compare(whole, **more)) == 0

    def die(self: CompareJob) -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield 0

    def killed() -> None:
        CompareJob.score = die
        compare(cut, **more)

    assert forked(killed) == -signal.SIGKILL
    assert forked(lambda: compare(cut, **more)) == 0
    assert contents(cut, "scores") == contents(whole, "scores")
    assert contents(cut, "images") == contents(whole, "images")


def test_judges_are_asked_about_prompts_before_anything_is_drawn(tmp_path: Path) -> None:
    """`ocr` without a quoted text, a judge that only ranks, features that are not there."""
    for more, words in (
        ({"judges": ["ocr"]}, "reads the text in quotes"),
        ({"judges": ["test-evenness", "rank(test-evenness,test-redder)"]}, "only ranks images"),
        ({"diversity": "test-evenness"}, "no image encoder of its own"),
    ):
        job = CompareJob(comparison(**more), tmp_path / words[:5], pipe=build("sd"))
        with pytest.raises(ValueError, match=words):
            next(job.draw(job.missing()))
        assert not list((tmp_path / words[:5]).rglob("*.png"))
        job.store.release()


def test_the_optimised_reward_on_a_scale(tmp_path: Path) -> None:
    scales = Scales(
        Scale.fit({text: [0.1 * k, 0.2, 0.3] for k, text in enumerate(PROMPTS)}, reward=name)
        for name in ("test-redder",)
    )
    scales.save(tmp_path / "scales.json")
    plain, scaled = tmp_path / "plain", tmp_path / "scaled"
    own = {"scale": str(tmp_path / "scales.json")}
    assert forked(lambda: compare(plain)) == 0
    assert forked(lambda: compare(scaled, **own)) == 0
    assert pixels(plain / "images" / "base") == pixels(scaled / "images" / "base")
    for raw, z in zip(scores(plain), scores(scaled), strict=True):
        assert raw["test-evenness"] == z["test-evenness"]  # judges stay as they are
        if raw["arm"] == "base":
            expected = scales[0].of([float(raw["test-redder"])], raw["prompt"])
            assert float(z["test-redder"]) == pytest.approx(float(expected[0]), abs=1e-3)
    Scales().save(tmp_path / "scales.json")
    with pytest.raises(FolderError, match="scale"):
        CompareJob(comparison(**own), scaled)
