"""ImageReward against an independent float64 restatement of the published model."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from blip_reference import (
    TEXT,
    VISION,
    PublishedScorer,
    published_layout,
    published_preprocess,
    random_checkpoint,
    vit,
)
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from transformers import BertConfig, BertModel, BertTokenizer

import steer
from steer.core.errors import CheckpointError
from steer.rewards.models import blip
from steer.rewards.models.blip_reward import BlipReward
from steer.rewards.models.imagereward import imagereward


WORDS = ["a", "red", "circle", "cat", "with", "two", "horns", "of", "the", "night", "sky", ",", "."]
VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##t"]
CONFIG = {"vision": VISION, "text": {**TEXT, "vocab_size": len(VOCABULARY) + 2}}
PROMPTS = ["a red circle", "The night sky, a cat with two horns.", "circles of night"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return path


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_checkpoint(len(VOCABULARY) + 2)


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imagereward") / "ImageReward.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def build(checkpoint, vocabulary):
    def make(**options) -> BlipReward:
        given = {"checkpoint": checkpoint, "tokenizer": vocabulary, "device": "cpu"}
        return imagereward(**{**given, "model_config": CONFIG, **options})

    return make


@pytest.fixture(scope="module")
def reward(build) -> BlipReward:
    return build()


@pytest.fixture(scope="module")
def published(state, vocabulary):
    """The whole published scorer: images and prompts to float64 rewards."""
    scorer, tokenizer = PublishedScorer(state), BertTokenizer.from_pretrained(str(vocabulary))

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": 35}
        tokens = tokenizer(prompts, return_tensors="pt", **options)
        return scorer(images, tokens.input_ids, tokens.attention_mask)

    return score


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 5, 6, generator=noise, dtype=torch.float64)
    return torch.nn.functional.interpolate(small, (height, width), mode="bilinear")


SIZES = [(224, 224), (64, 64), (90, 140), (301, 97), (512, 512)]


@pytest.mark.parametrize("size", SIZES)
def test_score_is_the_published_one(reward, published, size):
    images = pictures(3, *size)
    got, expected = reward(images.float(), PROMPTS), published(images, PROMPTS)
    assert got.dtype == torch.float32 and got.shape == (3,)
    assert torch.allclose(got.double(), expected, atol=2e-5, rtol=0)
    assert expected.std() > 0.05  # the test would otherwise see little


def test_float64_agrees_to_rounding(build, published):
    exact, images = build(dtype=torch.float64), pictures(3, 150, 110)
    assert (exact.score(images, PROMPTS) - published(images, PROMPTS)).abs().max() < 1e-10


def test_image_and_prompt_both_matter(reward):
    images = pictures(2, 100, 100).float()
    scores = torch.stack([reward(images, prompt) for prompt in PROMPTS])
    assert scores.std(0).min() > 1e-3 and scores.std(1).min() > 1e-3


@pytest.mark.parametrize("size", [(60, 90), (300, 224), (231, 517)])
def test_preprocess_is_the_published_one_up_to_8_bits(reward, size):
    noise = np.random.default_rng(0).integers(60, 196, (*size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(noise).permute(2, 0, 1)[None] / 255
    assert (reward.preprocess(pixels.double()) - published_preprocess(pixels)).abs().max() < 1e-12
    assert (reward.preprocess(pixels) - published_preprocess(pixels)).abs().max() < 1e-3
    pil = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224)])
    expected = np.asarray(pil(Image.fromarray(noise)))
    std = torch.tensor(reward.preprocess.std)[:, None, None]
    mean = torch.tensor(reward.preprocess.mean)[:, None, None]
    got = (reward.preprocess(pixels)[0] * std + mean).permute(1, 2, 0) * 255
    gap = np.abs(got.numpy() - expected)  # PIL rounds, and cuts, to 8 bits after both its passes
    assert gap.max() < 2 and gap.mean() < 0.5


def test_all_published_names_and_shapes_have_their_place():
    with torch.device("meta"):
        model = blip.BlipScorer({}, {})
        layout = published_layout(blip.TEXT, 1024, 30524, vit(24, 1024, 16, 16))
        bert = BertModel(BertConfig(vocab_size=30524, is_decoder=True, add_cross_attention=True))
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    used = layout.keys() - blip.UNUSED
    found = {blip.module_name(name): layout[name] for name in used}
    assert found == own
    assert len(found) == len(layout) - len(blip.UNUSED) and layout.keys() >= blip.UNUSED
    names = {n for n in bert.state_dict() if "token_type" not in n and not n.startswith("pooler")}
    prefix = "blip.text_encoder."
    assert names == {n.removeprefix(prefix) for n in used if n.startswith(prefix)}
    assert sum(p.numel() for p in model.parameters()) == sum(math.prod(s) for s in own.values())


def test_unused_tensors_may_be_missing_or_there(build, state, reward, tmp_path):
    path = tmp_path / "lean.safetensors"
    save_file({n: v for n, v in state.items() if n not in blip.UNUSED}, path)
    images = pictures(3, 80, 80).float()
    lean, whole = build(checkpoint=path)(images, PROMPTS), reward(images, PROMPTS)
    assert torch.allclose(lean, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blip.visual_encoder.blocks.1.attn.qkv.bias", "1 missing .*self_attn.qkv.bias"),
        ("blip.text_encoder.encoder.layer.0.crossattention.self.key.weight", "1 missing"),
        ("mlp.layers.7.weight", "1 missing .head.4.weight"),
    ],
)
def test_missing_tensors_are_errors(build, state, tmp_path, name, message):
    path = tmp_path / "x.pt"
    torch.save({n: v for n, v in state.items() if n != name}, path)
    with pytest.raises(CheckpointError, match=message):
        build(checkpoint=path)


@pytest.mark.parametrize("name", ["blip.itm_head.weight", "mlp.layers.1.weight", "temp"])
def test_unexpected_tensors_are_errors(build, state, tmp_path, name):
    path = tmp_path / "x.pt"
    torch.save({**state, name: torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=f"1 unexpected .{name}"):
        build(checkpoint=path)


def test_weights_of_another_size_are_refused(checkpoint, vocabulary):
    with pytest.raises(CheckpointError, match="of another shape"):
        imagereward(checkpoint=checkpoint, tokenizer=vocabulary, device="cpu")


def test_gradient_is_the_finite_difference(build):
    exact = build(dtype=torch.float64)
    image = pictures(1, 50, 70).requires_grad_()
    (gradient,) = torch.autograd.grad(exact.score(image, PROMPTS[1:2]).sum(), image)
    for seed in range(3):
        direction = torch.randn(image.shape, dtype=torch.float64, generator=_seed(seed))
        step = 1e-5 * direction
        with torch.no_grad():
            ends = [exact.score(x, PROMPTS[1:2]).item() for x in (image + step, image - step)]
        rise = (ends[0] - ends[1]) / 2e-5
        assert math.isclose((gradient * direction).sum().item(), rise, rel_tol=1e-6)


def test_gradients_reach_images_in_half_precision_and_after_inference_mode(build):
    half = build(dtype=torch.bfloat16)
    images = pictures(2, 64, 64).float()
    with torch.inference_mode():
        half(images, PROMPTS[0])
    images.requires_grad_()
    half(images, PROMPTS[0]).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_scores_are_float32_and_near(build, reward, dtype, near):
    images = pictures(6, 96, 96, seed=2).float()
    got = build(dtype=dtype)(images, PROMPTS * 2)
    assert got.dtype == torch.float32 and len(got.unique()) == 6
    assert (got - reward(images, PROMPTS * 2)).abs().max() < near


def test_long_prompts_are_cut_as_published_and_say_so(reward, published):
    images = pictures(1, 60, 60)
    prompt = " ".join(["cat"] * 32 + ["red", "night", "sky"])
    with pytest.warns(UserWarning, match="35 tokens, imagereward reads 33; cut off: 'night sky'"):
        got = reward(images.float(), prompt)
    assert torch.allclose(got.double(), published(images, [prompt]), atol=2e-5)
    cut = reward(images.float(), " ".join(["cat"] * 32 + ["red"]))
    assert torch.equal(got, cut)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(images.float(), " ".join(["cat"] * 33))


def test_batches_do_not_matter(build, reward):
    images = pictures(5, 70, 90).float()
    prompts = [*PROMPTS, *PROMPTS[:2]]
    whole = reward(images, prompts)
    for batch in (1, 2, None):
        assert torch.allclose(build(batch=batch)(images, prompts), whole, atol=1e-5)
    assert torch.allclose(reward(images.flip(0), prompts[::-1]).flip(0), whole, atol=1e-5)


def test_prompts_are_tokenised_once(build):
    fresh = build()
    for _ in range(2):
        fresh(pictures(4, 40, 40).float(), PROMPTS[:1] * 3 + PROMPTS[1:2])
    assert fresh._tokens.cache_info().misses == 2


def test_models_are_loaded_once_and_again_when_rewritten(state, vocabulary, tmp_path):
    path = tmp_path / "ImageReward.pt"
    options = {"tokenizer": vocabulary, "device": "cpu", "model_config": CONFIG}
    torch.save(state, path)
    first = imagereward(checkpoint=path, **options)
    assert imagereward(checkpoint=path, **options).model is first.model
    torch.save({"state_dict": {**state, "mlp.layers.7.bias": torch.ones(1)}}, path)
    again = imagereward(checkpoint=path, **options)
    images = pictures(1, 40, 40).float()
    shift = (1 - state["mlp.layers.7.bias"]) / 1.0333394966054072
    assert torch.allclose(again(images, "a cat") - first(images, "a cat"), shift, atol=1e-5)


def test_by_name(checkpoint, vocabulary):
    found = steer.reward(
        "imagereward", checkpoint=checkpoint, tokenizer=vocabulary, model_config=CONFIG
    )
    assert found.name == "imagereward" and found.differentiable and found.needs_prompt
    assert found.range == (-math.inf, math.inf)


def test_tokenizer_folder_works_and_must_fit(build, reward, vocabulary, tmp_path):
    images = pictures(3, 50, 50).float()
    folder = build(tokenizer=vocabulary.parent)
    # The same weights at other addresses: rounding may differ.
    torch.testing.assert_close(folder(images, PROMPTS), reward(images, PROMPTS), rtol=0, atol=1e-5)
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(VOCABULARY[:-1]))
    with pytest.raises(CheckpointError, match=r"has 22 tokens .*weights have 23: pass a folder"):
        build(tokenizer=other)
    with pytest.raises(CheckpointError, match=r"tokenizer=.* does not exist"):
        build(tokenizer=tmp_path / "none")


def test_bad_arguments_say_what_to_do(build, tmp_path):
    with pytest.raises(ValueError, match=r"model_config has the parts \['eyes'\]"):
        build(model_config={"eyes": {}})
    with pytest.raises(ValueError, match="batch=0"):
        build(batch=0)
    with pytest.raises(CheckpointError, match=r"checkpoint='.*none.pt' does not exist"):
        build(checkpoint=tmp_path / "none.pt")


def test_without_network_the_message_names_the_file(monkeypatch, vocabulary):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _no_network)
    with pytest.raises(CheckpointError, match=r"hf download zai-org/ImageReward ImageReward.pt"):
        imagereward(tokenizer=vocabulary)


def test_without_network_the_tokenizer_is_named_too(monkeypatch, checkpoint):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", _no_network)
    with pytest.raises(CheckpointError, match=r"bert-base-uncased vocab.txt.*tokenizer="):
        imagereward(checkpoint=checkpoint)


def _no_network(*_, **__):
    raise OSError("no network")


def _seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
