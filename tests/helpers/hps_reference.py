"""The published HPS v2 preprocessing and model, restated in float64 without steer's code.

Resizing is by explicit matrices; the model is transformers' CLIPModel, through a key map.
"""

from __future__ import annotations

import re

import numpy as np
from torch import Tensor
from transformers import CLIPConfig, CLIPModel


MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resize_matrix(source: int, target: int) -> np.ndarray:
    """Antialiased bicubic resampling of one axis, `(target, source)`."""
    scale = source / target
    stretch = max(scale, 1.0)
    matrix = np.zeros((target, source))
    for i in range(target):
        center = (i + 0.5) * scale
        for j in range(source):
            matrix[i, j] = cubic((j + 0.5 - center) / stretch)
    return matrix / matrix.sum(1, keepdims=True)


def published_preprocess(image: np.ndarray, size: int = 224) -> np.ndarray:
    """`(H, W, 3)` float64 in [0, 1] to `(3, size, size)`: longest side, zero padding, normalise."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    rows, columns = round(height * scale), round(width * scale)
    image = np.einsum("ih,hwc->iwc", resize_matrix(height, rows), image)
    image = np.einsum("jw,iwc->ijc", resize_matrix(width, columns), image)
    canvas = np.zeros((size, size, 3))
    top, left = (size - rows) // 2, (size - columns) // 2
    canvas[top : top + rows, left : left + columns] = image
    return ((canvas - MEAN) / STD).transpose(2, 0, 1)


def renamed(name: str) -> str:
    rules = [
        (r"^visual\.proj$", "visual_projection.weight"),
        (r"^text_projection$", "text_projection.weight"),
        (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
        (r"^token_embedding", "text_model.embeddings.token_embedding"),
        (r"^ln_final", "text_model.final_layer_norm"),
        (r"^visual\.class_embedding", "vision_model.embeddings.class_embedding"),
        (r"^visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        (r"^visual\.conv1", "vision_model.embeddings.patch_embedding"),
        (r"^visual\.ln_pre", "vision_model.pre_layrnorm"),
        (r"^visual\.ln_post", "vision_model.post_layernorm"),
        (r"^visual\.transformer\.resblocks", "vision_model.encoder.layers"),
        (r"^transformer\.resblocks", "text_model.encoder.layers"),
        (r"\.ln_(\d)\.", r".layer_norm\1."),
        (r"\.attn\.", ".self_attn."),
        (r"\.mlp\.c_fc", ".mlp.fc1"),
        (r"\.mlp\.c_proj", ".mlp.fc2"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def published_model(state: dict[str, Tensor], config: dict) -> CLIPModel:
    mapped = {}
    for name, value in state.items():
        new = renamed(name)
        if "in_proj" in name:
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                mapped[new.replace("in_proj_", f"{letter}_proj.")] = third
        else:
            mapped[new] = value.T if name.endswith(("visual.proj", "text_projection")) else value
    text, vision = config["text_cfg"], config["vision_cfg"]
    shared = {"hidden_act": "gelu", "projection_dim": config["embed_dim"]}
    model = CLIPModel(
        CLIPConfig(
            projection_dim=config["embed_dim"],
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "vocab_size": text["vocab_size"],
                "eos_token_id": 49407,
                **shared,
            },
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision["head_width"],
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                **shared,
            },
        )
    )
    assert {k for k in model.state_dict() if "position_ids" not in k} == set(mapped)
    model.load_state_dict(mapped, strict=False)
    return model.double().eval()
