"""The examples: read as they are, and run small, SD 1.5 with random checkpoints of its layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import build

from steer.jobs.compare import published_sets
from steer.jobs.compare.arms import check_arm
from steer.jobs.compare.config import Comparison, read
from steer.jobs.compare.job import run
from steer.jobs.compare.prompt_sets import load_prompts
from steer.jobs.compare.prompts import Prompt, PromptSet
from steer.rewards import register_reward


EXAMPLES = Path(__file__).parents[4] / "examples"
FILES = sorted(EXAMPLES.glob("compare_*.yaml"))


@register_reward("test-layout-warmth")
def warmth(images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_examples_can_be_read(file: Path) -> None:
    plan = read(file)
    for arm in plan.arms:
        check_arm(arm)
    assert plan.judges and plan.title


def test_the_shapes_example_is_whole() -> None:
    plan = read(EXAMPLES / "compare_shapes.yaml")
    assert len(load_prompts(plan.prompts).texts) == 24


def test_the_known_names_exist() -> None:
    from steer.driver.denoisers.checkpoints import KNOWN

    plan = read(EXAMPLES / "compare_sd15.yaml")
    assert {arm.tuned for arm in plan.arms if arm.tuned} <= set(KNOWN)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two tuned UNets, saved as their publishers save them."""
    folder = tmp_path_factory.mktemp("sd15")
    build("sd").save_pretrained(folder / "base")
    for name, factor in (("dpo-sd15", 1.05), ("kto-sd15", 0.9)):
        unet = build("sd").unet
        with torch.no_grad():
            for weight in unet.parameters():
                weight.mul_(factor)
        unet.save_pretrained(folder / name / "unet")
    return folder


SMALL_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 56,
        "layers": 2,
        "width": 40,
        "head_width": 20,
        "patch_size": 28,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def hps_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HPSv2 as published, a pickle with `state_dict`, of a model small enough to be random."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL_CLIP)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    monkeypatch.setattr("open_clip.get_model_config", lambda _: SMALL_CLIP)
    return path


def small(plan: Comparison, folder: Path, hps_file: Path) -> Comparison:
    """The same plan with small checkpoints, few steps, and judges that need no download."""
    arms = tuple(
        arm.model_copy(update={"tuned": str(folder / arm.tuned) if arm.tuned else None})
        for arm in plan.arms
    )
    changes = {
        "arms": arms,
        "pipeline": str(folder / "base"),
        "steps": 4,
        "judges": ("test-layout-warmth", "compressibility"),
        "checkpoints": {"hpsv2": str(hps_file)},
        "device": "cpu",
    }
    return plan.model_copy(update=changes)


def test_sd15_with_small_checkpoints(
    checkpoints: Path, hps_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    styles = [Prompt(f"a {s}", s) for s in ("anime", "photo")]
    monkeypatch.setitem(
        published_sets.READERS, "hpsv2", lambda: PromptSet("hpsv2", tuple(styles), "test")
    )
    plan = small(read(EXAMPLES / "compare_sd15.yaml"), checkpoints, hps_file)
    page = run(plan, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert page is not None and len(arms) == 7
    multiples = {name: arm["cost"]["multiple"] for name, arm in arms.items()}
    assert multiples["base"] == multiples["dpo"] == multiples["kto-switch"] == 1.0
    assert multiples["dpo-rlg"] == 2.0
    assert 1 < multiples["base-4x"] == multiples["dpo-4x"] <= 4.0
    assert arms["dpo"]["weights"] == arms["dpo-rlg"]["weights"] != arms["kto"]["weights"]
    assert set(found["categories"]) == {"anime", "photo"} and not found["protocol"]
    assert found["rewards"][0] == {"name": "hpsv2", "optimised": True, "scale": 100.0}
    means = found["means"]["hpsv2"]
    assert means["dpo-4x"]["mean"] >= means["dpo"]["mean"]
    assert len({round(v["mean"], 9) for v in means.values()}) == 7
