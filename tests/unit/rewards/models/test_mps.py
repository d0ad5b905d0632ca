"""MPS on a tiny random checkpoint of the published layout, against a restatement in plain sums."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import steer
from steer.core.errors import CheckpointError
from steer.rewards.models.mps import CONDITION, mps


WIDTH, HEADS, HEAD_WIDTH = 16, 2, 4
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CONFIG = {
    "text": SMALL,
    "vision": {**SMALL, "image_size": 28},
    "cross": {"width": WIDTH, "heads": HEADS, "head_width": HEAD_WIDTH},
}
PROMPTS = ["a red circle", "a blue square left of a red circle with two hands"]
START, END = 49406, 49407


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    torch.manual_seed(0)
    vision = {**SMALL, "image_size": 28, "patch_size": 14, "hidden_act": "gelu"}
    text = {**SMALL, "hidden_act": "gelu"}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def state(clip) -> dict[str, Tensor]:
    """The published names, written out."""
    noise = torch.Generator().manual_seed(1)
    found = {f"mps.model.{name}": tensor for name, tensor in clip.state_dict().items()}
    inner = HEADS * HEAD_WIDTH
    shapes = {
        "0.fn.to_q.weight": (inner, WIDTH),
        "0.fn.to_kv.weight": (2 * HEAD_WIDTH, WIDTH),
        "0.fn.to_out.weight": (WIDTH, inner),
        "0.fn.ff.0.weight": (8 * WIDTH, WIDTH),
        "0.fn.ff.2.weight": (WIDTH, 4 * WIDTH),
        "1.fn.fused_attn_ff_proj.weight": (inner + 2 * HEAD_WIDTH + 8 * WIDTH, WIDTH),
        "1.fn.attn_out.weight": (WIDTH, inner),
        "1.fn.ff_out.1.weight": (WIDTH, 4 * WIDTH),
    }
    for layer in range(4):
        start = f"mps.cross_model.layers.{layer}"
        for name, shape in shapes.items():
            found[f"{start}.{name}"] = torch.randn(shape, generator=noise) / math.sqrt(shape[1])
        for part in (0, 1):
            found[f"{start}.{part}.fn.norm.weight"] = 1 + torch.randn(WIDTH, generator=noise) / 9
            found[f"{start}.{part}.fn.norm.bias"] = torch.zeros(WIDTH)
        steps = torch.arange(0, HEAD_WIDTH, 2).float() / HEAD_WIDTH
        found[f"{start}.1.fn.rotary_emb.inv_freq"] = 1 / 10000**steps
    return found


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mps") / "model.safetensors"
    save_file(state, path)
    return path


def make(checkpoint: Path, **options: Any) -> Any:
    return mps(checkpoint=checkpoint, device="cpu", model_config=CONFIG, **options)


def images(count: int, size: int = 28) -> Tensor:
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))
    return (noise * 255).round() / 255


class Restated:
    def __init__(self, clip: CLIPModel, state: dict[str, Tensor]) -> None:
        self.clip, self.state = clip, state

    def ids(self, reward: Any, text: str) -> Tensor:
        tokens = [START, *reward.tokenizer._ids(text), END]
        return torch.tensor([(tokens + [END] * 77)[:77]])

    def words(self, ids: Tensor) -> Tensor:
        return self.clip.text_projection(self.clip.text_model(input_ids=ids).last_hidden_state)[0]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        heads = []
        for query in queries.split(HEAD_WIDTH, dim=-1):
            scores = query @ keys.T / math.sqrt(HEAD_WIDTH)
            heads.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values)
        return torch.cat(heads, -1)

    def turn(self, x: Tensor) -> Tensor:
        half = HEAD_WIDTH // 2
        turned = torch.empty_like(x)
        for place in range(len(x)):
            for i in range(half):
                angle = place / 10000 ** (2 * i / HEAD_WIDTH)
                a, b = x[place, i], x[place, i + half]
                turned[place, i] = a * math.cos(angle) - b * math.sin(angle)
                turned[place, i + half] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    def look(self, x: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        for layer in range(4):
            w = {
                name.removeprefix(f"mps.cross_model.layers.{layer}."): tensor
                for name, tensor in self.state.items()
            }
            n = F.layer_norm(x, (WIDTH,), w["0.fn.norm.weight"])
            keys, values = (words @ w["0.fn.to_kv.weight"].T).split(HEAD_WIDTH, -1)
            read = self.attend(n @ w["0.fn.to_q.weight"].T, keys, values, seen)
            a, gate = (n @ w["0.fn.ff.0.weight"].T).chunk(2, -1)
            x = x + read @ w["0.fn.to_out.weight"].T + (F.silu(gate) * a) @ w["0.fn.ff.2.weight"].T
            n = F.layer_norm(x, (WIDTH,), w["1.fn.norm.weight"])
            sizes = [HEADS * HEAD_WIDTH, HEAD_WIDTH, HEAD_WIDTH, 8 * WIDTH]
            q, k, v, inner = (n @ w["1.fn.fused_attn_ff_proj.weight"].T).split(sizes, -1)
            q = torch.cat([self.turn(part) for part in q.split(HEAD_WIDTH, -1)], -1)
            read = self.attend(q, self.turn(k), v, torch.ones(len(x), dtype=torch.bool))
            a, gate = inner.chunk(2, -1)
            x = x + read @ w["1.fn.attn_out.weight"].T
            x = x + (F.silu(gate) * a) @ w["1.fn.ff_out.1.weight"].T
        return x[0]

    @torch.no_grad()
    def score(self, reward: Any, image: Tensor, prompt: str, least: float) -> Tensor:
        size = {"shortest_edge": 28}, {"height": 28, "width": 28}
        processor = CLIPImageProcessor(size=size[0], crop_size=size[1])
        array = (image * 255).round().byte().permute(1, 2, 0).numpy()
        pixels = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
        hidden = self.clip.vision_model(pixel_values=pixels).last_hidden_state
        ids = self.ids(reward, prompt)
        words, condition = self.words(ids), self.words(self.ids(reward, CONDITION))
        likeness = torch.stack([max(c @ word for c in condition) for word in words])
        seen = likeness / likeness.max() > least
        image_f = self.look(self.clip.visual_projection(hidden)[0], words, seen)
        text_f = words[int((ids[0] == END).nonzero()[0])]
        return self.clip.logit_scale.exp() * F.cosine_similarity(text_f, image_f, dim=0)


@pytest.mark.parametrize("least", [0.01, 0.8])
def test_scores_are_the_restatements(checkpoint, clip, state, least, monkeypatch):
    """The published threshold, under which random words are all seen; and one that hides some."""
    monkeypatch.setattr("steer.rewards.models.mps.SIMILAR", least)
    reward, restated = make(checkpoint), Restated(clip, state)
    pictures = images(2)
    expected = [restated.score(reward, x, p, least) for x, p in zip(pictures, PROMPTS, strict=True)]
    assert torch.allclose(reward(pictures, PROMPTS), torch.stack(expected), rtol=1e-3, atol=1e-3)
    assert abs(expected[0] - expected[1]) > 0.1
    seen = torch.stack([reward._read(prompt)[2] for prompt in PROMPTS])
    assert seen.any(1).all() and (least == 0.01 or not seen.all(1).any())


def test_a_batch_does_not_matter_and_neither_do_its_neighbours(checkpoint):
    reward, pictures = make(checkpoint), images(2)
    one = torch.cat([reward(pictures[i : i + 1], PROMPTS[i]) for i in (0, 1)])
    assert torch.allclose(reward(pictures, PROMPTS), one, rtol=1e-4, atol=1e-5)


def test_images_have_a_gradient(checkpoint):
    pictures = images(2, 40).requires_grad_()
    make(checkpoint)(pictures, PROMPTS).sum().backward()
    assert (pictures.grad.flatten(1).norm(dim=1) > 0).all()


def test_the_condition_matters(checkpoint, monkeypatch):
    monkeypatch.setattr("steer.rewards.models.mps.SIMILAR", 0.8)
    other = make(checkpoint, condition="hands")
    assert not torch.allclose(other(images(1), PROMPTS[1]), make(checkpoint)(images(1), PROMPTS[1]))
    with pytest.raises(ValueError, match="condition is empty"):
        make(checkpoint, condition=" ")


def test_by_name_and_names_of_the_authors_own_module(checkpoint, tmp_path):
    found = steer.reward("mps", checkpoint=checkpoint, device="cpu", model_config=CONFIG)
    assert found.family == "clip-h/human" and found.differentiable
    bare = {name.removeprefix("mps."): t for name, t in load_file(checkpoint).items()}
    save_file(bare, tmp_path / "bare.safetensors")
    assert torch.equal(make(tmp_path / "bare.safetensors")(images(1), "a"), found(images(1), "a"))


def test_files_that_are_not_plain_tensors_or_do_not_fit(checkpoint, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")  # as the authors publish theirs
    with pytest.raises(CheckpointError, match="would run code"):
        make(tmp_path / "whole.pth")
    state = load_file(checkpoint)
    del state["mps.cross_model.layers.3.1.fn.attn_out.weight"]
    save_file(state, tmp_path / "holes.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(cross_model\.layers\.3"):
        make(tmp_path / "holes.safetensors")
