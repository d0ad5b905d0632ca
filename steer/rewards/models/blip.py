"""BLIP with a head of one number, on transformers' modules, and the names of published weights.

A ViT-L/16 looks at the image, a BERT attends to it by cross-attention (BLIP, Li et al. 2022,
arXiv:2201.12086), and five linear layers turn the first token into one number. ImageReward (Xu et
al. 2023, arXiv:2304.05977; github.com/THUDM/ImageReward) has no activations between them,
CycleReward (Bahng et al. 2025, arXiv:2506.02095; github.com/hjbahng/cyclereward) has GELUs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from steer.core.weights.reading import load_into


VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
TEXT = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
HEAD = (1024, 128, 64, 16, 1)


@dataclass(frozen=True)
class Head:
    """The layers behind the first token.

    Attributes:
        numbers: Of its linear layers in the published names, `mlp.layers.<number>`.
        gelu: Whether there are GELUs between them.
    """

    numbers: tuple[int, ...]
    gelu: bool

    def module(self, width: int) -> nn.Sequential:
        """The layers, from `width` features to one number."""
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise((width, *HEAD)):
            between = [nn.GELU()] if self.gelu and layers else []
            layers += [*between, nn.Linear(fan_in, fan_out)]
        return nn.Sequential(*layers)

    def place(self, number: int) -> int:
        """Where in `module` the published layer `number` is; ValueError if it is none."""
        return self.numbers.index(number) * (2 if self.gelu else 1)


LINEAR = Head((0, 2, 4, 6, 7), gelu=False)  # ImageReward; between them lie dropouts
GELU = Head((0, 2, 4, 6, 8), gelu=True)  # CycleReward

UNUSED = frozenset(
    {
        "blip.vision_proj.weight",  # BLIP's contrastive heads, which the score does not read
        "blip.vision_proj.bias",
        "blip.text_proj.weight",
        "blip.text_proj.bias",
        "blip.text_encoder.embeddings.position_ids",  # 0, 1, 2, ...
    }
)
"""Tensors of the published checkpoint that the score does not need."""

_BLOCK = r"blip\.visual_encoder\.blocks\.(\d+)\."
_LAYER = r"vision.encoder.layers.\1."
_RULES = [
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(\w+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.norm\.(\w+)", r"vision.post_layernorm.\1"),
    (_BLOCK + r"norm([12])\.(\w+)", _LAYER + r"layer_norm\2.\3"),
    (_BLOCK + r"attn\.qkv\.(\w+)", _LAYER + r"self_attn.qkv.\2"),
    (_BLOCK + r"attn\.proj\.(\w+)", _LAYER + r"self_attn.projection.\2"),
    (_BLOCK + r"mlp\.fc([12])\.(\w+)", _LAYER + r"mlp.fc\2.\3"),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
]


class BlipScorer(nn.Module):
    """Image and token ids to one raw number per pair, before it is standardised.

    Args:
        vision: What differs from the published vision config, in `BlipVisionConfig`'s names.
        text: What differs from the published text config, in `BlipTextConfig`'s names.
        head: The layers behind the first token.
    """

    def __init__(
        self, vision: Mapping[str, Any], text: Mapping[str, Any], head: Head = LINEAR
    ) -> None:
        super().__init__()
        vision_config = BlipVisionConfig(**{**VISION, **vision})
        width = vision_config.hidden_size
        text_config = BlipTextConfig(**{**TEXT, **text, "encoder_hidden_size": width})
        self.vision = BlipVisionModel(vision_config)
        self.text = BlipTextModel(text_config, add_pooling_layer=False)
        self.head = head.module(text_config.hidden_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the vision tower takes."""
        size: Any = self.vision.config.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """`(B, 3, S, S)` normalised pixels, `(B, T)` token ids and their mask to `(B,)`."""
        image = self.vision(pixels).last_hidden_state
        text = self.text(ids, attention_mask=mask, encoder_hidden_states=image)
        first = text.last_hidden_state[:, 0]
        return self.head(first.to(next(self.head.parameters()).dtype)).squeeze(-1)


def module_name(published: str, head: Head = LINEAR) -> str:
    """Where a tensor of the published layout lives in `BlipScorer`; unknown names stay."""
    layer = re.fullmatch(r"mlp\.layers\.(\d)\.(\w+)", published)
    if layer and int(layer[1]) in head.numbers:
        return f"head.{head.place(int(layer[1]))}.{layer[2]}"
    for pattern, name in _RULES:
        match = re.fullmatch(pattern, published)
        if match:
            return match.expand(name)
    return published


def build(
    state: Mapping[str, Tensor],
    source: str,
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    head: Head = LINEAR,
) -> BlipScorer:
    """The network with published weights.

    Args:
        state: Names and tensors of the published layout; those in `UNUSED` may be there or not.
        source: What to call the checkpoint in an error.
        vision: As for `BlipScorer`.
        text: As for `BlipScorer`.
        head: As for `BlipScorer`.

    Raises:
        CheckpointError: Missing or unexpected tensors, or other shapes.
    """
    with torch.device("meta"):  # nothing is initialised only to be overwritten
        model = BlipScorer(vision, text, head)
    used = {module_name(name, head): v for name, v in state.items() if name not in UNUSED}
    load_into(model, used, source, assign=True)
    positions = torch.arange(model.text.config.max_position_embeddings)
    model.text.embeddings.register_buffer("position_ids", positions[None], persistent=False)
    return model
