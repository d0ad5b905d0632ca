"""VideoReward on a tiny random checkpoint of the published layout, against its restatement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_reference import CONFIG, Reference
from torch import Tensor, nn
from transformers import Qwen2VLVideoProcessor

import steer
from steer.core.errors import CheckpointError
from steer.rewards.registry import resolve
from steer.rewards.vlm import prompts
from steer.rewards.vlm.videoreward import DEVIATIONS, MEANS, frames, videoreward


MARKS = ["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"]
PROMPTS = ["a red circle", "a blue square left of a red circle"]
SCALE = 2.0


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(MARKS, nn.Linear(32, 1, bias=False))


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory) -> dict[str, Path]:
    """The names that peft gives a model, its updates apart from its weights."""
    folder = tmp_path_factory.mktemp("videoreward")
    noise = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in reference.state().items():
        tuned = name.startswith("model.layers.") and "proj" in name
        stem, _, kind = name.rpartition(".")
        if not tuned:
            state[f"base_model.model.{name}"] = tensor
            continue
        if kind == "weight":
            down = torch.randn(4, tensor.shape[1], generator=noise) / 8
            up = torch.randn(tensor.shape[0], 4, generator=noise) / 8
            state[f"base_model.model.{stem}.lora_A.default.weight"] = down
            state[f"base_model.model.{stem}.lora_B.default.weight"] = up
            tensor = tensor - SCALE * up @ down  # so that the reference has the merged weights
        state[f"base_model.model.{stem}.base_layer.{kind}"] = tensor
    torch.save(state, folder / "model.pth")
    return {"checkpoint": folder / "model.pth", "tokenizer": reference.save_tokenizer(folder)}


def make(files: dict[str, Path], axis: Any = "sum", **options: Any) -> Any:
    return videoreward(axis, **{**files, "device": "cpu", "model_config": CONFIG, **options})


def videos(count: int, length: int = 9) -> Tensor:
    """Of a size that the model takes as it is."""
    noise = torch.Generator().manual_seed(0)
    small = 0.1 + 0.8 * torch.rand(count * length, 3, 4, 6, generator=noise)
    large = torch.nn.functional.interpolate(small, (336, 308), mode="bilinear")
    return (large * 255).round().div(255).unflatten(0, (count, length))


def expected(reference: Reference, shown: Tensor, texts: list[str]) -> Tensor:
    """`(B, 3)` z-scores by transformers' own video processor, one video at a time."""
    processor = Qwen2VLVideoProcessor(do_sample_frames=False, do_resize=False)
    found = []
    for video, prompt in zip(shown, texts, strict=True):
        array = (video * 255).round().byte().permute(0, 2, 3, 1).numpy()
        seen = processor([array], return_tensors="pt")
        text = prompts.read("videoreward").replace("{prompt}", prompt)
        with torch.no_grad():
            pixels, grid = seen["pixel_values_videos"], seen["video_grid_thw"]
            found.append(reference.score(pixels, grid, text, "video")[:, 0])
    return (torch.stack(found) - torch.tensor(MEANS)) / torch.tensor(DEVIATIONS)


def test_scores_are_the_restatements_with_the_updates_merged(files, reference):
    shown = videos(2)
    axes = expected(reference, shown[:, [0, 3, 5, 8]], PROMPTS)  # linspace(0, 8, 4), rounded
    whole = make(files)
    assert torch.allclose(whole.axes(shown, PROMPTS), axes, rtol=1e-3, atol=1e-4)
    assert torch.allclose(whole(shown, PROMPTS), axes.sum(1), rtol=1e-3, atol=1e-4)
    for index, axis in enumerate(("vq", "mq", "ta")):
        one = make(files, axis)
        assert one.name == f"videoreward:{axis}"
        assert torch.allclose(one(shown, PROMPTS), axes[:, index], rtol=1e-3, atol=1e-4)
    assert axes.std(0).min() > 1e-3


@pytest.mark.parametrize(
    ("count", "fps", "chosen"),
    [
        (81, 16.0, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),
        (16, 16.0, [0, 5, 10, 15]),
        (3, 16.0, [0, 2]),
        (2, 8.0, [0, 1]),
    ],
)
def test_two_frames_a_second_and_at_least_four(count, fps, chosen):
    assert frames(count, fps) == chosen


def test_frames_have_a_gradient_where_they_are_looked_at(files):
    shown = videos(1).requires_grad_()
    make(files)(shown, "a").sum().backward()
    norms = shown.grad[0].flatten(1).norm(dim=1)
    assert (norms > 0).nonzero().flatten().tolist() == frames(9, 16.0)


def test_by_name_alive_and_for_video_pipelines_only(files):
    made = steer.reward("videoreward", device="cpu", model_config=CONFIG, **files)
    assert made.family == "vlm/human" and resolve(made, videos=True) is made
    with pytest.raises(ValueError, match="judges the motion of videos, and images are to be"):
        resolve(made)
    with pytest.raises(ValueError, match=r"pass videos .* of two frames or more"):
        made(torch.zeros(2, 3, 56, 56), "a")


def test_updates_that_are_not_the_published_ones_are_refused(files, tmp_path):
    state = torch.load(files["checkpoint"], weights_only=True)
    name = next(name for name in state if "lora_B" in name)
    del state[name]
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match=r"low-rank update of .* cannot be used"):
        make(files, checkpoint=tmp_path / "half.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"axis": "all"}, "axis='all': one of 'sum'"), ({"fps": 0.0}, "fps=0.0: frames per second")],
)
def test_bad_options(files, options, message):
    with pytest.raises(ValueError, match=message):
        make(files, **options)
