"""CycleReward against an independent float64 restatement of the published model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from blip_reference import (
    GELU,
    TEXT,
    VISION,
    PublishedScorer,
    published_layout,
    random_checkpoint,
    vit,
)
from torch import Tensor
from transformers import BertTokenizer

import steer
from steer.core.errors import CheckpointError
from steer.core.weights.reading import load_state_dict
from steer.jobs.convert import convert
from steer.rewards.models import blip
from steer.rewards.models.blip_reward import BlipReward
from steer.rewards.models.cyclereward import cyclereward


WORDS = ["a", "red", "circle", "cat", "with", "two", "horns", "of", "the", "night", "sky", ",", "."]
VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##t"]
LONG = {**TEXT, "max_position_embeddings": 140}
CONFIG = {"vision": VISION, "text": {**LONG, "vocab_size": len(VOCABULARY) + 2}}
PROMPTS = ["a red circle", "The night sky, a cat with two horns.", "circles of night " * 20]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return path


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_checkpoint(len(VOCABULARY) + 2, head=GELU, text=LONG)


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cyclereward") / "CycleReward-Combo.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def build(checkpoint, vocabulary):
    def make(**options) -> BlipReward:
        given = {"checkpoint": checkpoint, "tokenizer": vocabulary, "device": "cpu"}
        return cyclereward(**{**given, "model_config": CONFIG, **options})

    return make


@pytest.fixture(scope="module")
def published(state, vocabulary):
    """The whole published scorer: images and prompts to float64 rewards."""
    scorer, tokenizer = (
        PublishedScorer(state, GELU),
        BertTokenizer.from_pretrained(str(vocabulary)),
    )

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": 128}
        tokens = tokenizer(prompts, return_tensors="pt", **options)
        return scorer(images, tokens.input_ids, tokens.attention_mask)

    return score


def pictures(count: int, height: int, width: int) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 5, 6, generator=noise, dtype=torch.float64)
    return torch.nn.functional.interpolate(small, (height, width), mode="bilinear")


@pytest.mark.parametrize("size", [(64, 64), (90, 140), (512, 512)])
def test_score_is_the_published_one(build, published, size):
    images = pictures(3, *size)
    expected = published(images, PROMPTS)
    assert expected.std() > 0.01  # the test would otherwise see little
    got = build()(images.float(), PROMPTS)
    assert torch.allclose(got.double(), expected, atol=2e-5, rtol=0)
    exact = build(dtype=torch.float64)
    assert (exact.score(images, PROMPTS) - expected).abs().max() < 1e-10


def test_all_published_names_and_shapes_have_their_place():
    with torch.device("meta"):
        model = blip.BlipScorer({}, {}, blip.GELU)
        layout = published_layout(blip.TEXT, 1024, 30524, vit(24, 1024, 16, 16), GELU)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    used = layout.keys() - blip.UNUSED
    assert {blip.module_name(name, blip.GELU): layout[name] for name in used} == own


def test_weights_of_imagereward_are_refused(build, tmp_path):
    path = tmp_path / "ImageReward.pt"
    torch.save(random_checkpoint(len(VOCABULARY) + 2, text=LONG), path)
    with pytest.raises(
        CheckpointError, match=r"missing \(head.8.weight.*unexpected \(mlp.layers.7"
    ):
        build(checkpoint=path)


def test_gradient_is_the_finite_difference(build):
    exact = build(dtype=torch.float64)
    image = pictures(1, 50, 70).requires_grad_()
    (gradient,) = torch.autograd.grad(exact.score(image, PROMPTS[1:2]).sum(), image)
    noise = torch.Generator().manual_seed(1)
    direction = torch.randn(image.shape, dtype=torch.float64, generator=noise)
    with torch.no_grad():
        ends = [exact.score(image + s * direction, PROMPTS[1:2]).item() for s in (1e-5, -1e-5)]
    rise = (ends[0] - ends[1]) / 2e-5
    assert math.isclose((gradient * direction).sum().item(), rise, rel_tol=1e-6)


def test_long_prompts_are_cut_after_126_pieces_and_say_so(build, published):
    images, prompt = pictures(1, 60, 60), " ".join(["cat"] * 126 + ["red", "sky"])
    with pytest.warns(UserWarning, match="128 tokens, cyclereward reads 126; cut off: 'red sky'"):
        got = build()(images.float(), prompt)
    assert torch.allclose(got.double(), published(images, [prompt]), atol=2e-5)


def test_variants_by_name(checkpoint, vocabulary):
    options = {"checkpoint": checkpoint, "tokenizer": vocabulary, "model_config": CONFIG}
    for name in ("cyclereward", "cyclereward:t2i", "cyclereward:i2t"):
        found = steer.reward(name, device="cpu", **options)
        assert (found.name, found.differentiable, found.needs_prompt) == (name, True, True)
    with pytest.raises(ValueError, match="variant='both': one of 'combo', 't2i', 'i2t'"):
        cyclereward("both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="reward='cyclereward:both' is unknown"):
        steer.reward("cyclereward:both")


def test_converted_to_safetensors(build, checkpoint, state, tmp_path):
    made = convert(checkpoint, tmp_path / "combo.safetensors")
    assert load_state_dict(made.path).keys() == state.keys()
    images = pictures(2, 40, 40).float()
    same = build(checkpoint=made.path)(images, PROMPTS[:2])
    assert torch.allclose(same, build()(images, PROMPTS[:2]), atol=1e-6)


def test_without_network_the_message_names_the_release(monkeypatch, vocabulary):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    where = "releases/download/v1.0.0/CycleReward-I2T.pth"
    with pytest.raises(CheckpointError, match=rf"curl -L -o 'CycleReward-I2T.pth' '.*{where}'"):
        steer.reward("cyclereward:i2t", tokenizer=vocabulary)
