"""The LAION predictors against transformers' CLIP and the published heads, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from transformers import CLIPModel
from transformers_clip import (
    finite_difference_error,
    noise,
    random_transformers_clip,
    shortest_side_preprocess,
    tensor,
    unit,
)

import steer
from steer.core.errors import CheckpointError
from steer.rewards.clip.layout import to_open_clip
from steer.rewards.models.aesthetic import aesthetic, aesthetic_v1, fold


def published_mlp(width: int) -> nn.Sequential:
    """simple_inference.py of the improved predictor, `self.layers`."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    ).eval()


@pytest.fixture(scope="module")
def config(hps_config) -> dict:
    return {**hps_config, "quick_gelu": True}


@pytest.fixture(scope="module")
def model(config) -> CLIPModel:
    return random_transformers_clip(config, seed=7)


@pytest.fixture(scope="module")
def folder(model, config, tmp_path_factory):
    """Backbone and heads, in the published formats."""
    folder = tmp_path_factory.mktemp("aesthetic")
    model.save_pretrained(folder)
    torch.manual_seed(0)
    mlp, linear = published_mlp(config["embed_dim"]), nn.Linear(config["embed_dim"], 1)
    torch.save({f"layers.{k}": v for k, v in mlp.state_dict().items()}, folder / "v2.pth")
    torch.save(linear.state_dict(), folder / "v1.pth")
    return folder


@pytest.fixture(scope="module")
def options(folder, config) -> dict:
    return {
        "backbone": folder / "model.safetensors",
        "model_config": config,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def reward(folder, options):
    return steer.reward("aesthetic", checkpoint=folder / "v2.pth", **options)


def head(folder, name: str, width: int) -> nn.Module:
    state = torch.load(folder / name, weights_only=True)
    module = published_mlp(width) if name == "v2.pth" else nn.Linear(width, 1)
    module.load_state_dict({k.removeprefix("layers."): v for k, v in state.items()})
    return module.double()


@pytest.fixture(scope="module")
def reference(model, folder, config):
    """Pixels and the name of a head to ratings, in float64 by transformers and the whole head."""
    exact = CLIPModel(model.config).eval()
    exact.load_state_dict(model.state_dict())
    exact.double()

    def score(pixels: np.ndarray, name: str):
        with torch.no_grad():
            features = unit(exact.get_image_features(pixel_values=torch.from_numpy(pixels)[None]))
            return head(folder, name, config["embed_dim"])(features)[:, 0]

    return score


SIZES = [(224, 224), (300, 300), (100, 63), (224, 227), (131, 224), (97, 301)]


@pytest.mark.parametrize("size", SIZES)
def test_score_is_the_published_one(reward, reference, folder, options, size):
    image = noise(*size, seed=2)
    pixels = shortest_side_preprocess(image, floor=False)
    v1 = steer.reward("aesthetic-v1", checkpoint=folder / "v1.pth", **options)
    for mine, name in ((reward, "v2.pth"), (v1, "v1.pth")):
        got = mine(tensor(image), "")
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), reference(pixels, name), atol=1e-5, rtol=0)


def test_float64_agrees_to_rounding(folder, options, reference):
    exact = aesthetic(checkpoint=folder / "v2.pth", dtype=torch.float64, **options)
    image = noise(90, 140)
    got = exact.score(tensor(image, torch.float64), [""])
    wanted = reference(shortest_side_preprocess(image, floor=False), "v2.pth")
    assert torch.allclose(got, wanted, atol=1e-12)


def test_declared_and_blind_to_prompts(reward, folder, options):
    assert (reward.name, reward.differentiable, reward.needs_prompt) == ("aesthetic", True, False)
    v1 = aesthetic_v1(checkpoint=folder / "v1.pth", **options)
    assert v1.name == "aesthetic-v1" and v1.encoder is reward.encoder  # one trunk for both
    images = torch.rand(5, 3, 40, 60)
    whole = reward(images, ["a", "b", "", "c", "d"])
    assert torch.equal(whole, reward(images, "something else"))
    small = aesthetic(checkpoint=folder / "v2.pth", batch=2, **options)
    assert torch.allclose(small(images, ""), whole, atol=1e-6)


def test_pil_and_gray(reward):
    picture = Image.fromarray((noise(80, 120) * 255).astype(np.uint8)).convert("L")
    expected = reward(tensor(np.asarray(picture.convert("RGB")) / 255.0), "")
    assert torch.allclose(reward([picture, picture.convert("RGBA")], ""), expected, atol=1e-6)


def test_the_backbone_is_quick_gelu(folder, options, config, reward):
    plain = {**options, "model_config": {**config, "quick_gelu": False}}
    other = aesthetic(checkpoint=folder / "v2.pth", **plain)
    image = tensor(noise(64, 64))
    assert (other(image, "") - reward(image, "")).abs() > 1e-5  # ten times the rounding


def test_backbone_in_open_clips_layout(model, folder, options, reward, tmp_path):
    torch.save(to_open_clip(dict(model.state_dict())), tmp_path / "ViT-L-14.pt")
    changed = {**options, "backbone": tmp_path / "ViT-L-14.pt"}
    other = aesthetic(checkpoint=folder / "v2.pth", **changed)
    image = torch.rand(1, 3, 50, 50)
    # The same weights at other addresses: rounding may differ.
    torch.testing.assert_close(other(image, ""), reward(image, ""), rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 30))
def test_folded_head_is_the_chain_of_layers(seed, size):
    torch.manual_seed(seed)
    mlp = published_mlp(24).double()
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.mul_(size**0.2)
    weight, bias = fold(mlp)
    features = torch.nn.functional.normalize(torch.randn(9, 24, dtype=torch.float64), dim=-1)
    expected = mlp(features)[:, 0]
    assert torch.allclose(features @ weight + bias, expected, rtol=1e-10, atol=1e-10)
    low, high = bias - weight.norm(), bias + weight.norm()  # what `range` declares
    assert (low <= expected + 1e-9).all() and (expected <= high + 1e-9).all()
    best = mlp(weight[None] / weight.norm())[0, 0]
    assert torch.allclose(best, high, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(folder, options, reward, dtype):
    half = aesthetic(checkpoint=folder / "v2.pth", dtype=dtype, **options)
    assert half.weight.dtype == torch.float32
    image = torch.rand(1, 3, 64, 48, requires_grad=True)
    got = half(image, "")
    assert got.dtype == torch.float32
    spread = (reward.range[1] - reward.range[0]) / 2
    assert torch.allclose(got, reward(image, ""), atol=0.03 * spread)
    got.sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


def test_gradient_is_the_finite_difference(folder, options):
    exact = aesthetic(checkpoint=folder / "v2.pth", dtype=torch.float64, **options)
    image = 0.2 + 0.6 * tensor(noise(50, 70), torch.float64)
    assert finite_difference_error(lambda x: exact.score(x, [""]), image) < 1e-6


def test_heads_that_do_not_fit(folder, options, tmp_path):
    with pytest.raises(CheckpointError, match=r"missing \(layers\.0\.weight"):
        aesthetic(checkpoint=folder / "v1.pth", **options)
    relu = {f"layers.{i}.weight": torch.zeros(1) for i in (0, 3, 6, 9, 11)}
    torch.save(relu, tmp_path / "relu.pth")
    with pytest.raises(CheckpointError, match=r"unexpected \(layers\.3\.weight"):
        aesthetic(checkpoint=tmp_path / "relu.pth", **options)
    torch.save(nn.Linear(768, 1).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"weight is \(1, 768\), the model has \(1, 24\)"):
        aesthetic_v1(checkpoint=tmp_path / "wide.pth", **options)
    torch.save(nn.Linear(24, 1), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="not loaded because it would run code"):
        aesthetic_v1(checkpoint=tmp_path / "module.pth", **options)


def test_unknown_model_and_missing_files(folder, options, monkeypatch):
    with pytest.raises(ValueError, match=r"model='vit_h_14': one of 'vit_l_14', 'vit_b_32'"):
        steer.reward("aesthetic-v1", model="vit_h_14", checkpoint=folder / "v1.pth")

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    pin = "32bd64288804d66eefd0ccbe215aa642df71cc41"
    command = f"hf download openai/clip-vit-large-patch14 model.safetensors --revision {pin}"
    with pytest.raises(CheckpointError, match=rf"{command}.*1\.71 GB.*pass backbone="):
        steer.reward("aesthetic", checkpoint=folder / "v2.pth")
    gone = {**options, "backbone": "gone.bin"}
    with pytest.raises(
        CheckpointError, match=r"backbone='gone\.bin' does not exist: .*base-patch32"
    ):
        steer.reward("aesthetic-v1", model="vit_b_32", **gone)
    curl = r"curl -L -o 'sac\+logos\+ava1-l14-linearMSE\.pth' 'https://raw\.github.*3\.71 MB"
    with pytest.raises(CheckpointError, match=rf"checkpoint='gone\.pth' does not exist: .*{curl}"):
        steer.reward("aesthetic", checkpoint="gone.pth", **options)
