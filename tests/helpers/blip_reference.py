"""ImageReward and CycleReward restated from their papers and published names, in float64.

On plain tensors: vision by timm's ViT (whose names the checkpoints follow), text and head by hand,
with no module of transformers.
"""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, softmax
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize


VISION = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 224,
    "patch_size": 56,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
}
DROPPED, GELU = (0, 2, 4, 6, 7), (0, 2, 4, 6, 8)
"""Numbers of the head's linear layers: ImageReward's, and CycleReward's with GELUs between them."""


def vit(depth: int, width: int, heads: int, patch: int) -> VisionTransformer:
    return VisionTransformer(224, patch, 3, 0, "token", width, depth, heads, class_token=True)


def published_layout(
    text: dict[str, int],
    width: int,
    tokens: int,
    eyes: VisionTransformer,
    head: tuple[int, ...] = DROPPED,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, all that the published class saves."""
    prefix = "blip.visual_encoder."
    shapes = {prefix + name: tuple(value.shape) for name, value in eyes.state_dict().items()}
    hidden, inner = text["hidden_size"], text["intermediate_size"]

    def add(name: str, rows: int, columns: int | None = None) -> None:
        shapes[f"{name}.weight"] = (rows,) if columns is None else (rows, columns)
        shapes[f"{name}.bias"] = (rows,)

    bert = "blip.text_encoder."
    shapes[bert + "embeddings.word_embeddings.weight"] = (tokens, hidden)
    positions = text["max_position_embeddings"]
    shapes[bert + "embeddings.position_embeddings.weight"] = (positions, hidden)
    shapes[bert + "embeddings.position_ids"] = (1, positions)
    add(bert + "embeddings.LayerNorm", hidden)
    for layer in range(text["num_hidden_layers"]):
        for kind, source in (("attention", hidden), ("crossattention", width)):
            at = f"{bert}encoder.layer.{layer}.{kind}."
            add(at + "self.query", hidden, hidden)
            add(at + "self.key", hidden, source)
            add(at + "self.value", hidden, source)
            add(at + "output.dense", hidden, hidden)
            add(at + "output.LayerNorm", hidden)
        at = f"{bert}encoder.layer.{layer}."
        add(at + "intermediate.dense", inner, hidden)
        add(at + "output.dense", hidden, inner)
        add(at + "output.LayerNorm", hidden)
    add("blip.vision_proj", 256, width)
    add("blip.text_proj", 256, hidden)
    for index, rows, columns in zip(
        head, (1024, 128, 64, 16, 1), (hidden, 1024, 128, 64, 16), strict=True
    ):
        add(f"mlp.layers.{index}", rows, columns)
    return shapes


def random_checkpoint(
    tokens: int, seed: int = 0, head: tuple[int, ...] = DROPPED, text: dict[str, int] = TEXT
) -> dict[str, Tensor]:
    """Small weights of the published layout, such that images and prompts move the score."""
    noise = torch.Generator().manual_seed(seed)
    eyes = vit(2, 32, 2, 56)
    state = {}
    for name, shape in published_layout(text, VISION["hidden_size"], tokens, eyes, head).items():
        norm = "norm" in name.lower() and name.endswith("weight")
        gain = 1.0 if name.startswith("mlp") else 1.5
        scale = 0.1 if len(shape) < 2 else gain / math.sqrt(math.prod(shape[1:]))
        scale = 0.5 if "embed" in name and len(shape) < 4 else scale
        state[name] = scale * torch.randn(shape, generator=noise) + float(norm)
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(
        text["max_position_embeddings"]
    )[None]
    return state


def published_preprocess(images: Tensor) -> Tensor:
    resize = Resize(224, InterpolationMode.BICUBIC, antialias=True)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    clip = [resize, lambda x: x.clamp(0, 1), CenterCrop(224), Normalize(mean, std)]
    return Compose(clip)(images.double())


class PublishedScorer:
    """Images `(B, 3, H, W)`, token ids and mask `(B, T)` to `(B,)` rewards, in float64."""

    def __init__(self, state: dict[str, Tensor], head: tuple[int, ...] = DROPPED) -> None:
        self.head = head
        self.state = {name: value.double() for name, value in state.items()}
        eyes = "blip.visual_encoder."
        self.eyes = vit(2, 32, 2, 56).double().eval()
        weights = {n.removeprefix(eyes): v for n, v in self.state.items() if n.startswith(eyes)}
        self.eyes.load_state_dict(weights, strict=True)

    def __call__(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self.eyes.forward_features(published_preprocess(images))
            score = self._head(self._text(ids, mask, seen)[:, 0])
            if self.head == GELU:
                return score
            return (score - 0.16717362830052426) / 1.0333394966054072

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], weight, bias, 1e-12)

    def _attention(self, at: str, x: Tensor, source: Tensor, blocked: Tensor | None) -> Tensor:
        heads = TEXT["num_attention_heads"]
        q, k, v = (
            self._linear(f"{at}.self.{kind}", y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for kind, y in (("query", x), ("key", source), ("value", source))
        )
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if blocked is not None:
            logits = logits.masked_fill(blocked[:, None, None], -math.inf)
        mixed = (softmax(logits, -1) @ v).transpose(1, 2).flatten(2)
        return self._norm(f"{at}.output.LayerNorm", self._linear(f"{at}.output.dense", mixed) + x)

    def _text(self, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        at = "blip.text_encoder."
        words = self.state[f"{at}embeddings.word_embeddings.weight"][ids]
        places = self.state[f"{at}embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(f"{at}embeddings.LayerNorm", words + places)
        for layer in range(TEXT["num_hidden_layers"]):
            here = f"{at}encoder.layer.{layer}"
            x = self._attention(f"{here}.attention", x, x, mask == 0)
            x = self._attention(f"{here}.crossattention", x, seen, None)
            inner = gelu(self._linear(f"{here}.intermediate.dense", x))
            dense = self._linear(f"{here}.output.dense", inner)
            x = self._norm(f"{here}.output.LayerNorm", dense + x)
        return x

    def _head(self, x: Tensor) -> Tensor:
        for index in self.head:
            x = self._linear(f"mlp.layers.{index}", x)
            x = gelu(x) if self.head == GELU and index != self.head[-1] else x
        return x.squeeze(-1)
