"""Aesthetic Predictor V2.5 against transformers' whole model and the published head."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel
from transformers_clip import finite_difference_error, noise, tensor

import steer
from steer.core.errors import CheckpointError
from steer.rewards.models.aesthetic_siglip import SiglipAesthetic, aesthetic_siglip


VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 45,  # as 384 and 14: some pixels belong to no patch
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 30,
}


@pytest.fixture(scope="module")
def model() -> SiglipModel:
    torch.manual_seed(3)
    model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def head() -> dict[str, Tensor]:
    """Names, shapes and precision of `aesthetic_predictor_v2_5.pth`, at the tower's width."""
    torch.manual_seed(4)
    widths = (24, 1024, 128, 64, 16, 1)
    state = {}
    for number, (fan_in, fan_out) in zip((0, 2, 4, 6, 8), itertools.pairwise(widths), strict=True):
        layer = nn.Linear(fan_in, fan_out)
        state[f"scoring_head.{number}.weight"] = 3 * layer.weight.detach().bfloat16()
        state[f"scoring_head.{number}.bias"] = layer.bias.detach().bfloat16()
    return state


@pytest.fixture(scope="module")
def options(model, head, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(folder)
    torch.save(head, folder / "head.pth")
    files = {"checkpoint": folder / "head.pth", "backbone": folder / "model.safetensors"}
    return {**files, "device": "cpu", "model_config": VISION}


@pytest.fixture(scope="module")
def reward(options) -> SiglipAesthetic:
    found = steer.reward("aesthetic-v2.5", **options)
    assert isinstance(found, SiglipAesthetic)
    return found


@pytest.fixture(scope="module")
def published(model, head):
    """8-bit images to ratings: transformers' processor and model, the whole head, in float64."""
    processor = SiglipImageProcessorPil(size={"height": 45, "width": 45})
    exact = SiglipModel(model.config).eval()
    exact.load_state_dict(model.state_dict())
    exact.double()

    def score(images: list[Image.Image]) -> Tensor:
        pixels = processor(images=images, return_tensors="pt").pixel_values.double()
        with torch.no_grad():
            x = exact.vision_model(pixels).pooler_output
            x = x / x.norm(dim=-1, keepdim=True)
            for number in (0, 2, 4, 6, 8):
                weight, bias = (head[f"scoring_head.{number}.{n}"] for n in ("weight", "bias"))
                x = x @ weight.double().T + bias.double()
        return x[:, 0]

    return score


@pytest.mark.parametrize("size", [(45, 45), (90, 140), (33, 50)])
def test_rating_is_the_published_one(reward, published, size):
    pixels = [(noise(*size, seed=i) * 255).round().astype(np.uint8) for i in range(3)]
    images = torch.cat([tensor(p / 255.0) for p in pixels])
    expected = published([Image.fromarray(p) for p in pixels])
    got = reward(images.float(), "")
    # PIL rounds to 8 bits where it resizes.
    near = 1e-5 if size == (45, 45) else 0.05 * float(expected.std())
    assert got.dtype == torch.float32 and expected.std() > 1e-3
    assert (got.double() - expected).abs().max() < near


def test_declared_and_blind_to_prompts(reward, options):
    declared = (reward.name, reward.differentiable, reward.needs_prompt)
    assert declared == ("aesthetic-v2.5", True, False)
    images = torch.rand(4, 3, 40, 60)
    whole = reward(images, ["a", "b", "", "c"])
    assert torch.equal(whole, reward(images, "something else"))
    low, high = reward.range
    assert ((low <= whole) & (whole <= high)).all()
    again = aesthetic_siglip(**{**options, "batch": 3})
    assert again.tower is reward.tower and torch.allclose(again(images, ""), whole, atol=1e-6)


def test_gradient_is_the_finite_difference(options):
    exact = aesthetic_siglip(**options, dtype=torch.float64)
    image = 0.2 + 0.6 * tensor(noise(50, 70), torch.float64)
    assert finite_difference_error(lambda x: exact.score(x, [""]), image) < 1e-6


def test_half_precision(options, reward):
    half = aesthetic_siglip(**options, dtype=torch.bfloat16)
    images = torch.rand(3, 3, 64, 48, requires_grad=True)
    got = half(images, "")
    spread = (reward.range[1] - reward.range[0]) / 2
    assert got.dtype == torch.float32 and half.weight.dtype == torch.float32
    assert (got - reward(images, "")).abs().max() < 0.05 * spread
    got.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()


def test_weights_that_do_not_fit(options, head, model, tmp_path: Path):
    with pytest.raises(CheckpointError, match="of another shape"):
        aesthetic_siglip(**{**options, "model_config": {**VISION, "intermediate_size": 44}})
    relu = {**head, "scoring_head.9.weight": torch.zeros(1)}
    torch.save(relu, tmp_path / "relu.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(scoring_head\.9\.weight"):
        aesthetic_siglip(**{**options, "checkpoint": tmp_path / "relu.pth"})
    blind = {n: v for n, v in model.state_dict().items() if not n.startswith("vision")}
    save_file({n: v.clone() for n, v in blind.items()}, tmp_path / "text.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        aesthetic_siglip(**{**options, "backbone": tmp_path / "text.safetensors"})


def test_missing_files_are_named(options):
    with pytest.raises(CheckpointError, match=r"backbone='gone.bin' does not exist: .*3\.51 GB"):
        aesthetic_siglip(**{**options, "backbone": "gone.bin"})
    with pytest.raises(CheckpointError, match=r"checkpoint='gone.pth' does not exist: .*2\.64 MB"):
        aesthetic_siglip(**{**options, "checkpoint": "gone.pth"})
