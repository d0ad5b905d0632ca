"""`benchmarks/scorers.py` end to end on a CPU, its gate, and its arithmetic."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch

from steer.rewards.vit_weights import vit_weights


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def study() -> Any:
    """`scorers` and `scorer_baselines`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        scorers, baselines = map(importlib.import_module, ("scorers", "scorer_baselines"))
        return SimpleNamespace(run=scorers, base=baselines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure this GPU")
def test_the_command_runs_on_a_cpu(study, tmp_path):
    path = tmp_path / "result.json"
    study.run.main(["--rounds", "1", "--batches", "2", "--steps", "2", "--out", str(path)])
    result = json.loads(path.read_text())
    assert result["device"] == "cpu" and "no claim about GPUs" in result["note"]
    arms = {"eager", "fused", "fused-no-graphs", "fp8"}
    assert set(result["gate"]) == arms
    seen = {(row["arm"], row["mode"]) for row in result["scorers"]}
    backward = {(arm, "forward+backward") for arm in arms - {"fp8"}}
    assert seen == {(arm, "forward") for arm in arms} | backward
    assert all(row["p20"] <= row["p50"] <= row["p80"] for row in result["scorers"])
    assert {row["arm"] for row in result["resize"]} == {"chain", "resize_patchify"}
    for row in result["noise_optimisation"]:
        assert row["reward_after"] > row["reward_before"]


def test_a_wrong_arm_stops_the_command(study):
    model = study.base.random_model("tiny", torch.device("cpu"), torch.float32)
    exact = study.base.by_open_clip(model.double(), torch.float64)
    images = study.run.pictures(2, 64, torch.device("cpu"), torch.float32)

    def off(images, texts):
        return exact(images.double(), texts.double()) * 1.01

    with pytest.raises(SystemExit, match=r"off is off: .*no time is reported"):
        study.run.gate([study.base.Arm("off", off)], exact, images, 24, "float32")

    def broken(images, texts):
        return images.sum((1, 2, 3)) * float("nan")

    with pytest.raises(SystemExit, match="nan"):
        study.run.gate([study.base.Arm("nan", broken, False)], exact, images, 24, "float32")


def test_operations_of_the_published_towers(study):
    """Against the counts of pytorch-image-models (GMACs of its CLIP towers, twice)."""
    for name, gflop in (("ViT-H-14", 334.6), ("ViT-L-14", 162.0), ("ViT-B-32", 8.8)):
        with torch.device("meta"):
            model = open_clip.CLIP(**open_clip.get_model_config(name))
        assert study.base.flops(vit_weights(model)) / 1e9 == pytest.approx(gflop, rel=0.005)


def test_percentiles(study):
    found = study.run.percentiles([float(x) for x in range(11)])
    assert found == {"p20": 2.0, "p50": 5.0, "p80": 8.0}
    assert set(study.run.percentiles([3.0]).values()) == {3.0}
    with pytest.raises(SystemExit, match="--model none"):
        study.base.random_model("none", torch.device("cpu"), torch.float32)
