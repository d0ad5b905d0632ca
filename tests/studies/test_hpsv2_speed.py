"""The study of `benchmarks/hpsv2_speed.py`, on a tiny model, without the public package."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN as OPENAI_MEAN, OPENAI_DATASET_STD as OPENAI_STD
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, normalize, resize, to_tensor


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study() -> Any:
    """`hpsv2_speed` and `hpsv2_side`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        names = ("hpsv2_speed", "hpsv2_side")
        return SimpleNamespace(**{n.split("_")[1]: importlib.import_module(n) for n in names})


@pytest.fixture(scope="module")
def folder(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study")
    study.side.make(path, tiny=True)
    return path


def preprocess(image: Image.Image) -> torch.Tensor:
    """The published steps on one image, `(1, 3, 224, 224)`."""
    pixels = to_tensor(image.convert("RGB"))[None]
    scale = 224 / max(pixels.shape[2:])
    if scale != 1:
        size = [round(n * scale) for n in pixels.shape[2:]]
        pixels = resize(pixels, size, InterpolationMode.BICUBIC, antialias=True)
    up, left = (224 - pixels.shape[2]) // 2, (224 - pixels.shape[3]) // 2
    below, right = 224 - pixels.shape[2] - up, 224 - pixels.shape[3] - left
    return normalize(F.pad(pixels, (left, right, up, below)), list(OPENAI_MEAN), list(OPENAI_STD))


def reloading_scorer(folder: Path, dtype: str) -> Any:
    """As the public one goes about it: reads its weights in every call, twice in the first, and
    encodes image and prompt one by one, with open_clip's model on the published preprocessing."""
    config = json.loads((folder / "config.json").read_text())
    state: dict[str, Any] = {}

    def score(images: list[Image.Image], prompt: str) -> list[float]:
        for _ in range(1 if state else 2):
            state.update(torch.load(folder / "HPS_v2.1_compressed.pt"))
        model = open_clip.CLIP(**config).eval()
        model.load_state_dict(state["state_dict"])
        ids = open_clip.SimpleTokenizer()([prompt])
        with torch.no_grad():
            text = model.encode_text(ids, normalize=True)
            pixels = [preprocess(image) for image in images]
            return [float(model.encode_image(p, normalize=True) @ text.T) for p in pixels]

    return score


def test_the_checkpoint_is_of_the_published_layout(study: Any, folder: Path) -> None:
    stored = torch.load(folder / study.side.CHECKPOINT, weights_only=True)
    assert set(stored) == {"state_dict"}
    assert {value.dtype for value in stored["state_dict"].values()} == {torch.float16}
    open_clip.CLIP(**study.side.TINY).load_state_dict(stored["state_dict"], strict=True)
    full = study.side.layout(open_clip.get_model_config(study.side.ARCHITECTURE))
    assert len(full) == 686
    assert sum(value.numel() for value in full.values()) == 986_109_441


def test_steer_scores_as_the_published_model_and_loads_once(
    study: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "rewards")
    reference = importlib.import_module("hps_reference")
    run = study.side.measure("steer", folder, 1)
    calls = run["calls"]
    loads = {name: call["checkpoint_loads"] for name, call in calls.items()}
    assert loads == {"first": 1, "second": 0, "another prompt": 0, "odd shapes": 0}
    assert all(call["seconds"] > 0 and call["peak_rss_gib"] > 0 for call in calls.values())

    state = torch.load(folder / study.side.CHECKPOINT, weights_only=True)["state_dict"]
    state = {name: value.double() for name, value in state.items()}
    model = reference.published_model(state, study.side.TINY)
    pixels = np.asarray(Image.open(folder / "00.png"), dtype=np.float64) / 255
    pixels = torch.from_numpy(reference.published_preprocess(pixels))[None]
    for name, prompt in (("first", study.side.PROMPT), ("another prompt", study.side.ANOTHER)):
        ids = open_clip.SimpleTokenizer()([prompt])
        with torch.no_grad():
            expected = model(input_ids=ids, pixel_values=pixels)
            score = (expected.image_embeds * expected.text_embeds).sum()
        assert calls[name]["scores"][0] == pytest.approx(float(score), abs=1e-5)
    assert len(calls["odd shapes"]["scores"]) == len(study.side.ODD)


def test_loads_are_counted_inside_only(study: Any, folder: Path) -> None:
    original = torch.load
    with study.side.counted_loads() as spent:
        for _ in range(3):
            torch.load(folder / study.side.CHECKPOINT, weights_only=True)
        with pytest.raises(FileNotFoundError):
            torch.load(folder / "missing.pt")
    assert spent["loads"] == 4 and spent["seconds"] > 0
    assert torch.load is original


def in_this_process(study: Any, monkeypatch: pytest.MonkeyPatch, public: Any) -> None:
    """Sides run here instead of in processes of their own; `public` replaces the package."""
    monkeypatch.setitem(study.side.SIDES, "public", public)
    monkeypatch.setitem(study.side.PACKAGES, "public", ("torch",))

    def run_side(python: str, side: str, folder: Path, *options: str) -> dict[str, Any]:
        if side == "make":
            assert options == ("--tiny",)
            return study.side.make(folder, tiny=True)
        given = dict(zip(options[::2], options[1::2], strict=True))
        return study.side.measure(side, folder, int(given["--images"]), given["--dtype"])

    monkeypatch.setattr(study.speed, "run_side", run_side)


def run_main(study: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/hpsv2_speed.py", "--tiny", *arguments])
    study.speed.main()


def test_the_whole_study(
    study: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_this_process(study, monkeypatch, reloading_scorer)
    monkeypatch.setattr(study.speed, "COUNTS", (1, 4))
    out, scratch = tmp_path / "out.json", tmp_path / "scratch"
    python = str(tmp_path / "hps" / "bin" / "python")
    run_main(
        study, monkeypatch, "--hpsv2-python", python, "--out", str(out), "--folder", str(scratch)
    )
    result = json.loads(out.read_text())
    assert str(tmp_path / "hps") not in result["command"]
    assert "--hpsv2-python hps/bin/python" in result["command"]
    assert not (scratch / "hpsv2_speed").exists()  # the checkpoint is gone
    assert result["agreement"]["float32"]["largest_difference"] < 2e-6
    assert result["agreement"]["float32"]["spread"] > 0.01
    assert result["agreement"]["bfloat16"]["largest_difference"] < 0.02
    loads = {
        (row["images"], row["call"]): (
            row["public_checkpoint_loads"],
            row["steer_checkpoint_loads"],
        )
        for row in result["comparison"]
        if row["steer_dtype"] == "bfloat16"
    }
    assert loads[1, "first"] == (2, 1)
    assert loads[4, "second"] == (1, 0)
    printed = capsys.readouterr().out.strip()
    assert printed == study.speed.table(result)
    assert printed.count("\n") == 5


@pytest.mark.parametrize("shift", [1e-3, float("nan")])
def test_scores_that_differ_are_refused(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    def shifted(folder: Path, dtype: str) -> Any:
        score = reloading_scorer(folder, dtype)
        return lambda images, prompt: [value + shift for value in score(images, prompt)]

    in_this_process(study, monkeypatch, shifted)
    monkeypatch.setattr(study.speed, "COUNTS", (1,))
    out = tmp_path / "out.json"
    arguments = ["--hpsv2-python", "python", "--out", str(out), "--folder", str(tmp_path / "s")]
    with pytest.raises(SystemExit, match=r"differ by (0\.001|nan)"):
        run_main(study, monkeypatch, *arguments)
    assert not out.exists()


def test_ratios_are_public_over_steer_of_the_same_setting(study: Any) -> None:
    def run(side: str, images: int, threads: int, seconds: float, dtype: str = "float32") -> dict:
        call = {
            "seconds": seconds,
            "cpu_seconds": 2 * seconds if side == "public" else seconds,
            "checkpoint_loads": 0,
            "peak_rss_gib": 1.0,
            "scores": [0.0],
        }
        calls = {"first": call, "second": call | {"seconds": seconds / 2}}
        return {
            "side": side, "dtype": dtype, "images": images, "threads": threads, "calls": calls
        }  # fmt: skip

    runs = [
        run("public", 1, 1, 8.0),
        run("public", 16, 1, 64.0),
        run("steer", 1, 1, 2.0),
        run("steer", 16, 1, 16.0),
        run("steer", 16, 1, 8.0, "bfloat16"),
        run("steer", 16, 2, 1.0),
    ]
    rows = {
        (row["images"], row["call"], row["steer_dtype"]): row for row in study.speed.compare(runs)
    }
    assert len(rows) == 6  # none for two threads: the public scorer has no such run
    assert rows[1, "first", "float32"]["ratio"] == 4
    assert rows[16, "first", "bfloat16"]["ratio"] == 8
    assert rows[16, "second", "float32"]["public_seconds_per_image"] == 2
    assert rows[16, "second", "float32"]["steer_seconds_per_image"] == 0.5
    assert rows[16, "first", "float32"]["cpu_seconds_ratio"] == 8


def test_a_python_without_the_package_says_how_to_make_one(study: Any, folder: Path) -> None:
    with pytest.raises(SystemExit, match="hpsv2") as failure:
        study.speed.run_side(sys.executable, "public", folder)
    assert "how its environment is made" in str(failure.value)
