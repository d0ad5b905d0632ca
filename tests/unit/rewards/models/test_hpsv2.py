"""HPSv2 against an independent float64 restatement of the published preprocessing and model."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import open_clip
import pytest
import torch
from hps_reference import published_model, published_preprocess
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize, pad
from torchvision.transforms.functional import InterpolationMode, resize

import steer
from steer.core.errors import CheckpointError
from steer.rewards.clip.encoder import Encoder, _build
from steer.rewards.models.hpsv2 import hpsv2, hpsv2_preprocess


PIN = "697403c78157020a1ae59d23f111aa58ced35b0a"
PROMPTS = ["A cat with two horns on its head", "an oil painting of &lt;a&gt;  Ship; it's 5 o'clock"]


@pytest.fixture(scope="module")
def published(hps_model, hps_config, clip_tokenizer):
    """The whole published scorer in float64: `(H, W, 3)` arrays and prompts to cosines."""
    model = published_model(hps_model.state_dict(), hps_config)

    def features(output):
        return normalize(getattr(output, "pooler_output", output), dim=-1)

    def score(images: list[np.ndarray], prompts: list[str]) -> Tensor:
        pixels = torch.from_numpy(np.stack([published_preprocess(x) for x in images]))
        clean = [prompt.replace("&lt;", "<").replace("&gt;", ">") for prompt in prompts]
        options = {"padding": "max_length", "max_length": 77, "truncation": True}
        tokens = clip_tokenizer(clean, return_tensors="pt", **options)
        with torch.no_grad():
            image = features(model.get_image_features(pixel_values=pixels))
            text = features(model.get_text_features(**tokens))
        return (image * text).sum(-1)

    return score


@pytest.fixture(scope="module")
def reward(hps_file, hps_config):
    return hpsv2(checkpoint=hps_file, model_config=hps_config, device="cpu")


def smooth_noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Sharp and smooth content, full range."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.add.outer(np.arange(height), np.arange(width)) / 9)[..., None] / 4 + 0.5
    return np.clip(wave + rng.normal(0, 0.3, (height, width, 3)), 0, 1)


def as_tensor(image: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].to(dtype)


SIZES = [(224, 224), (256, 256), (100, 60), (60, 100), (224, 130), (131, 224), (301, 97), (17, 90)]


@pytest.mark.parametrize("size", SIZES)
def test_preprocess_is_the_published_one(size):
    image = smooth_noise(*size)
    got = hpsv2_preprocess()(as_tensor(image, torch.float64))[0]
    assert np.abs(got.numpy() - published_preprocess(image)).max() < 1e-9
    got = hpsv2_preprocess()(as_tensor(image))[0]
    assert np.abs(got.numpy() - published_preprocess(image)).max() < 1e-4


def torchvision_before_0_17(image: Tensor, size: int = 224) -> Tensor:
    """The published transform where `antialias` was not passed and meant False."""
    height, width = image.shape[-2:]
    scale = size / max(height, width)
    if scale != 1:
        new = [round(height * scale), round(width * scale)]
        image = resize(image, new, InterpolationMode.BICUBIC, antialias=False)
    down, right = size - image.shape[-2], size - image.shape[-1]
    image = pad(image, (right // 2, right - right // 2, down // 2, down - down // 2))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=image.dtype)[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=image.dtype)[:, None, None]
    return (image - mean) / std


@pytest.mark.parametrize("size", [*SIZES, (512, 512)])
def test_legacy_resize_is_torchvisions_without_antialias(size, hps_file, hps_config):
    image = as_tensor(smooth_noise(*size))
    expected = torchvision_before_0_17(image)
    assert (hpsv2_preprocess(antialias=False)(image) - expected).abs().max() < 1e-5
    options = {"checkpoint": hps_file, "model_config": hps_config, "device": "cpu"}
    legacy = steer.reward("hpsv2", legacy_resize=True, **options)
    assert legacy.name == "hpsv2.1-legacy"
    with torch.no_grad():
        features = legacy.encoder.images(expected)
    wanted = (features * legacy.encoder.prompts(PROMPTS[:1])).sum(-1)
    assert torch.allclose(legacy(image, PROMPTS[0]), wanted, atol=1e-6)
    if max(size) > 224:  # where there is something to antialias, the two are far apart
        assert (hpsv2_preprocess()(image) - expected).abs().max() > 0.3


def test_bars_are_black_and_centred():
    pixels = hpsv2_preprocess()(torch.ones(1, 3, 768, 1344))[0]
    bar = torch.tensor([-1.792263, -1.752097, -1.480220])[:, None]
    assert torch.allclose(pixels[:, 47], bar.expand(3, 224), atol=1e-5)
    assert torch.allclose(pixels[:, 176], bar.expand(3, 224), atol=1e-5)
    assert (pixels[:, 48:176] > 0.5).all()


@pytest.mark.parametrize("size", SIZES)
def test_score_is_the_published_one(reward, published, size):
    image = smooth_noise(*size, seed=3)
    got = reward(as_tensor(image).expand(2, -1, -1, -1), PROMPTS)
    assert got.dtype == torch.float32 and got.shape == (2,)
    assert torch.allclose(got.double(), published([image] * 2, PROMPTS), atol=1e-5, rtol=0)


def test_float64_agrees_to_rounding(hps_file, hps_config, published):
    exact = hpsv2(checkpoint=hps_file, model_config=hps_config, device="cpu", dtype=torch.float64)
    image = smooth_noise(90, 140, seed=4)
    got = exact.score(as_tensor(image, torch.float64), PROMPTS[:1])
    assert abs(got.item() - published([image], PROMPTS[:1]).item()) < 1e-12


@pytest.mark.parametrize("size", [(80, 120), (131, 224), (224, 150), (224, 224)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_pil_modes(reward, published, mode, size):
    picture = Image.fromarray((smooth_noise(*size) * 255).astype(np.uint8)).convert(mode)
    if mode.endswith("A"):
        picture.putalpha(100)
    image = np.asarray(picture.convert("RGB")) / 255.0
    expected = published([image], PROMPTS[:1]).item()
    assert abs(reward([picture], PROMPTS[0]).item() - expected) < 1e-5
    if mode in ("RGBA", "L"):
        assert abs(reward(np.asarray(picture), PROMPTS[0]).item() - expected) < 1e-5


def test_long_prompts_are_cut_as_published_and_say_so(reward, published):
    image = smooth_noise(60, 60)
    prompt = " ".join(["dog"] * 74 + ["horse", "zebra", "crossing"])
    with pytest.warns(UserWarning, match=r"77 tokens, the reward reads 75; cut off: 'zebra cross"):
        got = reward(as_tensor(image), prompt)
    assert abs(got.item() - published([image], [prompt]).item()) < 1e-5
    fits = " ".join(["dog"] * 75)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(as_tensor(image), fits)


def test_gradient_is_the_finite_difference(hps_file, hps_config):
    exact = hpsv2(checkpoint=hps_file, model_config=hps_config, device="cpu", dtype=torch.float64)
    image = as_tensor(smooth_noise(50, 70), torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(exact.score(image, PROMPTS[:1]).sum(), image)
    for seed in range(3):
        torch.manual_seed(seed)
        direction = torch.randn_like(image)
        step = 1e-5 * direction
        with torch.no_grad():
            rise = exact.score(image + step, PROMPTS[:1]) - exact.score(image - step, PROMPTS[:1])
        assert math.isclose((gradient * direction).sum().item(), rise.item() / 2e-5, rel_tol=1e-6)


def test_gradient_in_float32_and_after_inference_mode(hps_file, hps_config):
    fresh = hpsv2(checkpoint=hps_file, model_config=hps_config, device="cpu")
    prompt = "only ever seen inside inference mode first"
    with torch.inference_mode():
        fresh(torch.rand(1, 3, 40, 40), prompt)
    image = torch.rand(2, 3, 40, 40, requires_grad=True)
    fresh(image, prompt).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(p.grad is None for p in fresh.encoder.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(hps_file, hps_config, reward, dtype):
    half = hpsv2(checkpoint=hps_file, model_config=hps_config, device="cpu", dtype=dtype)
    image = torch.rand(1, 3, 64, 48, requires_grad=True)
    got = half(image, PROMPTS[0])
    assert got.dtype == torch.float32
    assert torch.allclose(got, reward(image, PROMPTS[0]), atol=0.03)
    got.sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


def test_batches_and_cache_do_not_matter(reward, hps_file, hps_config):
    images = torch.rand(7, 3, 48, 32)
    prompts = ["one", "two", "one", "three", "one", "two", "four"]
    whole = reward(images, prompts)
    small = hpsv2(checkpoint=hps_file, model_config=hps_config, device="cpu", batch=2)
    assert torch.allclose(small(images, prompts), whole, atol=1e-6)
    assert torch.equal(reward(images, prompts), whole)  # prompts now come from the cache
    rows = torch.cat([reward(images[i : i + 1], prompts[i]) for i in range(7)])
    assert torch.allclose(rows, whole, atol=1e-6)


def test_prompt_cache_encodes_once_and_is_bounded(reward, monkeypatch):
    encoder, seen = reward.encoder, []
    original = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda p: (seen.extend(p), original(p))[1])
    monkeypatch.setattr(encoder, "cache", 3)
    images = torch.rand(4, 3, 32, 32)
    reward(images, ["p", "q", "p", "q"])
    reward(images, ["q", "p", "q", "r"])
    assert seen == ["p", "q", "r"]
    reward(images, ["s", "t", "u", "v"])  # more than the cache holds, in one call
    assert list(encoder._features) == ["t", "u", "v"]


def test_weights_from_safetensors_and_prefixed(hps_model, hps_config, reward, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "hps.safetensors"
    save_file({f"model.{k}": v for k, v in hps_model.state_dict().items()}, path)
    other = steer.reward("hpsv2.1", checkpoint=path, model_config=hps_config, device="cpu")
    image = torch.rand(1, 3, 64, 64)
    # The same weights at other addresses: rounding may differ.
    torch.testing.assert_close(other(image, "a"), reward(image, "a"), rtol=0, atol=1e-6)


def test_names_and_versions(hps_file, hps_config):
    options = {"checkpoint": hps_file, "model_config": hps_config, "device": "cpu"}
    names = {spec: steer.reward(spec, **options).name for spec in ("hpsv2", "hpsv2.0", "hpsv2.1")}
    assert names == {"hpsv2": "hpsv2.1", "hpsv2.0": "hpsv2.0", "hpsv2.1": "hpsv2.1"}
    with pytest.raises(ValueError, match=r"version='3': one of '2.0', '2.1'"):
        steer.reward("hpsv2", version="3")


def test_missing_weights_say_what_to_download(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match=r"hf download xswu/HPSv2 HPS_v2_compressed\.pt"):
        steer.reward("hpsv2.0", checkpoint=tmp_path / "gone.pt")

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(CheckpointError) as error:
        steer.reward("hpsv2")
    command = f"hf download xswu/HPSv2 HPS_v2.1_compressed.pt --revision {PIN}"
    for part in (command, "checkpoint=", "cache folder", "1.97 GB", "no network"):
        assert part in str(error.value)


def test_hub_gets_pinned_names(monkeypatch, hps_file, hps_config):
    asked = []

    def fetch(repository, name, *, revision, repo_type):
        asked.append((repository, name, revision))
        return str(hps_file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    steer.reward("hpsv2", model_config=hps_config, device="cpu")
    steer.reward("hpsv2.0", model_config=hps_config, device="cpu", revision="main")
    assert asked == [
        ("xswu/HPSv2", "HPS_v2.1_compressed.pt", PIN),
        ("xswu/HPSv2", "HPS_v2_compressed.pt", "main"),
    ]


def test_wrong_architecture_names_the_tensors(hps_file, folder_model):
    config = json.loads((folder_model[0] / "open_clip_config.json").read_text())["model_cfg"]
    with pytest.raises(CheckpointError, match=r"of another shape \(.*is \(.*the model has \("):
        hpsv2(checkpoint=hps_file, model_config=config, device="cpu")


@pytest.mark.slow
def test_full_size_towers_once():
    """The real ViT-H-14, from a state dict of its 686 tensors in float16, as the files hold it."""
    config = open_clip.get_model_config("ViT-H-14") or {}
    with torch.device("meta"):
        shapes = open_clip.CLIP(**config).state_dict()
    assert len(shapes) == 686
    state = {name: torch.empty(x.shape, dtype=torch.float16) for name, x in shapes.items()}
    model = _build(config, state, "no file")
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    encoder = Encoder(model, tokenizer, torch.device("cpu"), torch.float16)
    parameters = dict(encoder.model.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 986_109_441
    assert all(p.data_ptr() == state[name].data_ptr() for name, p in parameters.items())  # no copy
    assert encoder.image_size == (224, 224)
