"""PickScore against transformers' CLIP on checkpoints of the published layout."""

from __future__ import annotations

import math

import numpy as np
import open_clip
import pytest
import torch
from hps_reference import STD
from hypothesis import given, settings, strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel
from transformers_clip import (
    finite_difference_error,
    noise,
    random_transformers_clip,
    shortest_side_preprocess,
    tensor,
    transformers_config,
    unit,
)

import steer
from steer.core.errors import CheckpointError
from steer.rewards.clip.layout import to_open_clip
from steer.rewards.models.pickscore import pickscore, pickscore_preprocess


PROMPTS = ["A cat with two horns on its head", "an oil painting of a  Ship; it's 5 o'clock"]
SCALE = 97.3


@pytest.fixture(scope="module")
def model(hps_config) -> CLIPModel:
    model = random_transformers_clip(hps_config, seed=3)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))
    return model


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """`model.safetensors`, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("pickscore")
    model.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def options(hps_config) -> dict:
    return {"model_config": hps_config, "device": "cpu"}


@pytest.fixture(scope="module")
def reward(file, options):
    return pickscore(checkpoint=file, **options)


@pytest.fixture(scope="module")
def reference(model, clip_tokenizer):
    """Pixels `(B, 3, 224, 224)` and prompts to PickScore by transformers, in float64."""
    exact = CLIPModel(model.config).eval()
    exact.load_state_dict(model.state_dict())
    exact.double()

    def score(pixels, prompts):
        text = clip_tokenizer(
            prompts, padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        with torch.no_grad():
            image = unit(exact.get_image_features(pixel_values=pixels.double()))
            text = unit(exact.get_text_features(**text))
        return exact.logit_scale.exp() * (image * text).sum(-1)

    return score


def test_declared(reward, options, file):
    assert (reward.name, reward.differentiable, reward.needs_prompt) == ("pickscore", True, True)
    assert reward.range == pytest.approx((-SCALE, SCALE))
    assert steer.reward("pickscore", checkpoint=file, **options).encoder is reward.encoder


def test_score_is_transformers_on_its_own_processor(reward, reference):
    pictures = [Image.fromarray((noise(224, 224, s) * 255).astype(np.uint8)) for s in range(2)]
    pixels = CLIPImageProcessor()(images=pictures, return_tensors="pt")["pixel_values"]
    expected = reference(pixels, PROMPTS)
    got = reward(pictures, PROMPTS)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, atol=1e-5 * SCALE, rtol=0)
    assert (expected[0] - expected[1]).abs() > 0.1


SIZES = [
    (224, 224),
    (256, 256),
    (100, 63),
    (63, 100),
    (224, 227),
    (131, 224),
    (301, 97),
    (512, 401),
]


@pytest.mark.parametrize("size", SIZES)
def test_preprocess_and_score_at_any_size(reward, reference, options, file, size):
    image = noise(*size, seed=5)
    expected = shortest_side_preprocess(image, floor=True)
    got = pickscore_preprocess()(tensor(image, torch.float64))[0]
    assert np.abs(got.numpy() - expected).max() < 1e-9
    wanted = reference(torch.from_numpy(expected)[None], PROMPTS[:1])
    scored = reward(tensor(image), PROMPTS[0]).double()
    assert torch.allclose(scored, wanted, atol=1e-5 * SCALE, rtol=0)
    exact = pickscore(checkpoint=file, dtype=torch.float64, **options)
    scored = exact.score(tensor(image, torch.float64), PROMPTS[:1])
    assert torch.allclose(scored, wanted, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_preprocess_is_transformers_to_8_bits(size):
    middle = 0.3 + 0.4 * noise(*size)  # they also clip between the two passes of the resize
    picture = Image.fromarray((middle * 255).astype(np.uint8))
    theirs = CLIPImageProcessor()(images=picture, return_tensors="pt")["pixel_values"]
    mine = pickscore_preprocess()(tensor(np.asarray(picture) / 255.0))
    levels = (mine - theirs).abs() * torch.from_numpy(STD)[:, None, None] * 255
    assert levels.max() < 1.5


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(4, 20))
def test_key_map_is_complete(text_layers, vision_layers, heads, width):
    config = {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": 32,
            "layers": vision_layers,
            "width": 8 * heads,
            "head_width": 8,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 50,
            "width": 4 * heads,
            "heads": heads,
            "layers": text_layers,
        },
    }
    with torch.device("meta"):
        theirs = CLIPModel(transformers_config(config)).state_dict()
        ours = open_clip.CLIP(**config).state_dict()
    theirs["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # in old files
    theirs["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    mapped = to_open_clip(theirs)
    assert {n: v.shape for n, v in mapped.items()} == {n: v.shape for n, v in ours.items()}
    assert to_open_clip(mapped) is mapped


def test_key_map_at_full_size():
    config = open_clip.get_model_config("ViT-H-14")
    config["vision_cfg"]["head_width"] = 80
    with torch.device("meta"):
        theirs = CLIPModel(transformers_config(config)).state_dict()
        ours = open_clip.CLIP(**config).state_dict()
        mapped = to_open_clip(theirs)
    assert {n: v.shape for n, v in mapped.items()} == {n: v.shape for n, v in ours.items()}
    assert sum(v.numel() for v in mapped.values()) == 986_109_441


def test_every_layout_and_format_scores_alike(model, hps_config, reward, options, tmp_path):
    state = model.state_dict()
    old = {**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(old, tmp_path / "pytorch_model.bin")
    torch.save({"state_dict": to_open_clip(dict(state))}, tmp_path / "open_clip.pt")
    image = torch.rand(1, 3, 60, 80)
    for name in ("pytorch_model.bin", "open_clip.pt"):
        other = pickscore(checkpoint=tmp_path / name, **options)
        # The same weights lie at other addresses, where a product may take another path: cosines
        # differ by some units in the last place.
        found, wanted = other(image, PROMPTS[0]), reward(image, PROMPTS[0])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * SCALE)


def test_what_does_not_fit_is_named(model, options, tmp_path):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["text_model.extra.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "extra.bin")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(text_model\.extra\.weight\)"):
        pickscore(checkpoint=tmp_path / "extra.bin", **options)
    del state["text_model.extra.weight"]
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    torch.save(state, tmp_path / "third.bin")
    message = r"visual\.transformer\.resblocks\.1\.attn\.in_proj_weight is \(80, 40\)"
    with pytest.raises(CheckpointError, match=message):
        pickscore(checkpoint=tmp_path / "third.bin", **options)


def test_pickled_code_is_not_run(options, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="not loaded because it would run code"):
        pickscore(checkpoint=tmp_path / "module.pt", **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_the_scale(file, options, reward, dtype):
    half = pickscore(checkpoint=file, dtype=dtype, **options)
    assert half.scale == reward.scale == pytest.approx(SCALE, rel=1e-6)
    image = torch.rand(1, 3, 64, 48, requires_grad=True)
    got = half(image, PROMPTS[0])
    assert got.dtype == torch.float32
    assert torch.allclose(got, reward(image, PROMPTS[0]), atol=0.03 * SCALE)
    got.sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


def test_gradient_is_the_finite_difference(file, options):
    exact = pickscore(checkpoint=file, dtype=torch.float64, **options)
    image = tensor(noise(50, 70), torch.float64)
    image = 0.2 + 0.6 * image  # inside [0, 1], so that the clamp of the resize has no kink
    assert finite_difference_error(lambda x: exact.score(x, PROMPTS[:1]), image) < 1e-6


def test_hub_file_and_way_out(monkeypatch, file, options):
    asked = []

    def download(*where, revision, repo_type):
        asked.append((*where, revision))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    pickscore(**options)
    pickscore(revision="main", **options)
    pin = "a4e4367c6dfa7288a00c550414478f865b875800"
    name = ("yuvalkirstain/PickScore_v1", "model.safetensors")
    assert asked == [(*name, pin), (*name, "main")]

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    command = rf"hf download {name[0]} {name[1]} --revision {pin}.*3\.94 GB.*checkpoint="
    with pytest.raises(CheckpointError, match=command):
        steer.reward("pickscore")
    with pytest.raises(CheckpointError, match=r"checkpoint='gone\.pt' does not exist: .*hf downl"):
        steer.reward("pickscore", checkpoint="gone.pt")
