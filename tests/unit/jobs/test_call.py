"""Further arguments of a pipeline's calls: read, refused, and given to every call of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, seeded
from PIL import Image
from typer.testing import CliRunner, Result

from steer.cli.app import app
from steer.core.files.run_folder import RunFolder
from steer.driver.call import of_prompts
from steer.jobs.calibrate_job import CalibrateJob
from steer.jobs.call import check_known, read_call
from steer.jobs.sample_job import SampleJob
from steer.jobs.scale_job import ScaleJob
from steer.rewards import Scales, register_reward


@register_reward("test-call-redness")
def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipe")
    build("sd", "ddim").save_pretrained(path)
    return path


def run(command: str, *words: Any) -> Result:
    settings = ["--steps", 3, "--guidance-scale", 4, "--device", "cpu"]
    settings += ["--reward", "test-call-redness"]
    return CliRunner().invoke(app, [str(word) for word in (command, *words, *settings)])


def test_values_are_read_as_yaml_and_prompts_as_they_are() -> None:
    texts = ("true_cfg_scale=4", "negative_prompt=no: 1, [x]", "flag=true", "clip_skip= 2", "x=a=b")
    assert read_call(texts) == {
        "true_cfg_scale": 4,
        "negative_prompt": "no: 1, [x]",
        "flag": True,
        "clip_skip": 2,
        "x": "a=b",
    }
    assert read_call(()) is None


def test_a_text_is_every_prompts() -> None:
    call = {"negative_prompt": "blurry", "clip_skip": 1, "kind": "round"}
    assert of_prompts(call, 2) == {**call, "negative_prompt": ["blurry", "blurry"]}


@pytest.mark.parametrize("texts", [["blurry"], ["=x"], ["a b=1"], ["x=1", "x=2"]])
def test_texts_that_say_nothing(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"write NAME=VALUE|given twice"):
        read_call(texts)


@pytest.mark.parametrize("job", [SampleJob, ScaleJob, CalibrateJob])
def test_what_has_a_place_of_its_own_is_refused(job: Any) -> None:
    with pytest.raises(ValueError, match=r"call\.num_inference_steps=9: write steps"):
        job(("a", "b", "c", "d"), call={"num_inference_steps": 9})


def test_unknown_arguments() -> None:
    pipe = build("sd")
    with pytest.raises(ValueError, match=r"takes no 'negative_promt'; did you mean 'negative_pr"):
        check_known(pipe, ["negative_promt"])

    class Open:
        def __call__(self, prompt: str, **more: Any) -> None: ...

    check_known(Open(), ["anything"])


def test_every_call_has_them(folder: Path, tmp_path: Path) -> None:
    """The plain image is the pipeline's own call with them; a run keeps to what it began with."""
    words = ["a red circle", "--pipeline", folder, "--method", "BestOfN(2)", "--out", tmp_path]
    more = ["--call", "negative_prompt=a blue square"]
    assert run("sample", *words, *more).exit_code == 0
    found = RunFolder.load(tmp_path)
    assert found.data["arguments"]["call"] == {"negative_prompt": "a blue square"}
    pipe = build("sd", "ddim")
    given: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0}
    (own, other) = (
        pipe("a red circle", generator=seeded(found.entries[0]["seed"]), **given, **call).images[0]
        for call in ({"negative_prompt": "a blue square"}, {})
    )
    plain = Image.open(tmp_path / found.entries[0]["base"]["image"]).convert("RGB").tobytes()
    assert plain == own.tobytes() and plain != other.tobytes()
    again = run("sample", *words)
    assert again.exit_code == 2 and "--call was" in again.stderr


def test_scales_are_of_such_calls(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\ntwo blue squares\n")
    means: list[float] = []
    for name, more in (("a", []), ("b", ["--call", "negative_prompt=a blue square"])):
        out = tmp_path / f"{name}.json"
        words = [tmp_path / "p.txt", "--pipeline", folder, "--each", 2, "--out", out]
        assert run("scale", *words, *more).exit_code == 0
        (own,) = Scales.load(out)
        means.append(own.prompts["a red circle"].centre)
    assert means[0] != means[1]


def test_a_wrong_name_is_told_before_anything_is_drawn(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["a red circle", "--pipeline", folder, "--call", "shade=1", "--out", out]
    result = run("sample", *words)
    assert result.exit_code == 2 and "takes no 'shade'" in result.stderr
    assert not out.exists()
