"""HPS v3 on a tiny random checkpoint of the published layout, against its restatement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from qwen_reference import CONFIG, Reference
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2VLImageProcessor

import steer
from steer.core.errors import CheckpointError
from steer.jobs.convert import convert
from steer.rewards.vlm import prompts
from steer.rewards.vlm.hpsv3 import hpsv3


PROMPTS = ["a red circle", "a blue square left of a red circle", "Yes"]


@pytest.fixture(scope="module")
def reference() -> Reference:
    head = nn.Sequential(
        nn.Linear(32, 1024),
        nn.ReLU(),
        nn.Dropout(0.05),
        nn.Linear(1024, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )
    return Reference(["<|Reward|>"], head)


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hpsv3")
    save_file(reference.state(), folder / "HPSv3.safetensors")
    return {
        "checkpoint": folder / "HPSv3.safetensors",
        "tokenizer": reference.save_tokenizer(folder),
    }


def make(files: dict[str, Path], **options: Any) -> Any:
    return hpsv3(**{**files, "device": "cpu", "model_config": CONFIG, **options})


def images(count: int, height: int = 448, width: int = 448) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    small = 0.1 + 0.8 * torch.rand(count, 3, 4, 6, generator=noise)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    return (large * 255).round() / 255


def expected(reference: Reference, pictures: Tensor, texts: list[str]) -> Tensor:
    """`(B, 2)` by transformers' own processor, one image at a time."""
    processor = Qwen2VLImageProcessor(min_pixels=256 * 28 * 28, max_pixels=256 * 28 * 28)
    found = []
    for picture, prompt in zip(pictures, texts, strict=True):
        array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        seen = processor([Image.fromarray(array)], return_tensors="pt")
        text = prompts.read("hpsv3").replace("{prompt}", prompt)
        with torch.no_grad():
            found.append(
                reference.score(seen["pixel_values"], seen["image_grid_thw"], text, "image")[0]
            )
    return torch.stack(found)


def test_scores_are_the_restatements(files, reference):
    reward, pictures = make(files), images(3)
    both = expected(reference, pictures, PROMPTS)
    assert torch.allclose(reward(pictures, PROMPTS), both[:, 0], rtol=1e-4, atol=1e-5)
    mean, deviation = reward.both(pictures, PROMPTS)
    assert torch.allclose(mean, both[:, 0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(deviation, both[:, 1].exp(), rtol=1e-4)
    assert both[:, 0].std() > 1e-2


def test_other_sizes_are_resized_to_the_fixed_area(files, reference):
    reward, pictures = make(files), images(1, 300, 500)
    assert torch.allclose(
        reward(pictures, "a red circle"),
        expected(reference, pictures, ["a red circle"])[:, 0],
        rtol=0.02,
        atol=0.02,  # the processor rounds to 8 bits
    )


def test_images_have_a_gradient(files):
    pictures = images(2).requires_grad_()
    make(files)(pictures, PROMPTS[:2]).sum().backward()
    assert (pictures.grad.flatten(1).norm(dim=1) > 0).all()


def test_the_names_of_later_versions_and_converted_pickles(files, reference, tmp_path):
    renamed = {}
    for name, tensor in load_file(files["checkpoint"]).items():
        name = name.replace("visual.", "model.visual.")
        renamed[name.replace("model.layers", "model.language_model.layers")] = tensor
    for old in ("embed_tokens.weight", "norm.weight"):
        renamed[f"model.language_model.{old}"] = renamed.pop(f"model.{old}")
    torch.save(renamed, tmp_path / "new.pth")
    convert(tmp_path / "new.pth", tmp_path / "new.safetensors")
    one = make(files)(images(1), PROMPTS[0])
    for name in ("new.pth", "new.safetensors"):
        found = make(files, checkpoint=tmp_path / name)(images(1), PROMPTS[0])
        assert torch.allclose(found, one, rtol=1e-5)


def test_a_pickle_with_code_is_not_run(files, tmp_path):
    torch.save({"rm_head.0.weight": nn.Linear(2, 2)}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="would run code"):
        make(files, checkpoint=tmp_path / "bad.pth")


def test_half_precision_keeps_the_head(files):
    reward = make(files, dtype=torch.bfloat16)
    assert reward.loaded.scorer.backbone.dtype == torch.bfloat16
    assert reward.loaded.scorer.head[0].weight.dtype == torch.float32
    assert reward(images(1), PROMPTS[0]).isfinite().all()


def test_by_name_and_alive(files):
    found = steer.reward("hpsv3", device="cpu", model_config=CONFIG, **files)
    assert found.name == "hpsv3" and found.family == "vlm/human" and found.differentiable


def test_weights_of_another_shape_are_named(files, tmp_path):
    state = load_file(files["checkpoint"])
    del state["rm_head.5.bias"]
    save_file(state, tmp_path / "holes.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(5\.bias\)"):
        make(files, checkpoint=tmp_path / "holes.safetensors")
    with pytest.raises(ValueError, match=r"model_config has the parts \['sound'\]"):
        make(files, model_config={"sound": {}})


@pytest.mark.parametrize(
    ("prompt", "shape", "message"),
    [
        ("a <|Reward|>", (1, 3, 56, 56), "special token of the model: leave it out"),
        ("a", (1, 3, 2, 500), "at most 200 times the short one"),
        ("a", (1, 2, 3, 56, 56), "score videos .* with steer.rewards.PerFrame"),
    ],
)
def test_bad_input(files, prompt, shape, message):
    with pytest.raises(ValueError, match=message):
        make(files)(torch.zeros(shape), prompt)
