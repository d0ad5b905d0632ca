"""The models that are timed, on equal weights: open_clip's, and the same tower in transformers.

Weights are random unless a checkpoint is given: speed does not depend on them, and nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from steer.core.weights.reading import load_into, load_state_dict
from steer.rewards.clip.layout import to_open_clip
from steer.rewards.clip.preprocess import Preprocess
from steer.rewards.clip.tower_weights import VitWeights, unfit
from steer.rewards.models.hpsv2 import hpsv2_preprocess


TEXT: Any = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
"""A small text tower: all arms get cached text features, only `published` runs a text tower."""
TINY: Any = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 56,
        "patch_size": 14,
        "width": 128,
        "layers": 3,
        "head_width": 64,
    },
}


def config_of(name: str) -> dict[str, Any]:
    """The open_clip config of a model; "tiny" is ours.

    Raises:
        SystemExit: open_clip has no such model.
    """
    config = TINY if name == "tiny" else open_clip.get_model_config(name)
    if config is None:
        raise SystemExit(f"--model {name}: 'tiny', or a name of open_clip.list_models()")
    return config


def build(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    checkpoint: Path | None = None,
    text: bool = False,
) -> Any:
    """An open_clip model in evaluation mode, frozen: the same weights in every call.

    Args:
        name: As `config_of`.
        device: Where it goes.
        dtype: Precision of the weights; they are made or read in float32, then rounded.
        checkpoint: Weights in place of random ones.
        text: Whether the text tower is the model's own, instead of a small one.

    Raises:
        SystemExit: An unknown model, or an image tower that the fused ops do not run.
    """
    config = config_of(name)
    text_cfg = config.get("text_cfg", TEXT) if text else TEXT
    torch.manual_seed(0)
    with torch.device(device):
        model = open_clip.CLIP(
            config["embed_dim"],
            config["vision_cfg"],
            text_cfg,
            quick_gelu=config.get("quick_gelu", False),
        )
    if (reason := unfit(model)) is not None:
        raise SystemExit(f"--model {name}: {reason}")
    if checkpoint is None:
        _randomise(model)
    else:
        state = to_open_clip(load_state_dict(checkpoint))
        part: Any = model if text else model.visual
        prefix = "" if text else "visual."
        mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        load_into(part, mine, str(checkpoint))
    return model.eval().requires_grad_(False).to(dtype)


def _randomise(model: Any) -> None:
    """Seeded weights under which images get different features; the image tower's come first."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    for part in (model.visual, model):
        for name, value in part.named_parameters():
            if part is model and name.startswith("visual."):
                continue
            noise = torch.randn(value.shape, generator=generator, device=device)
            if value.ndim > 1:
                value.data = noise / value[0].numel() ** 0.5
            elif name.endswith("weight"):
                value.data = 1 + 0.1 * noise
            elif value.ndim == 1:
                value.data = 0.05 * noise


def preprocess_of(model: Any) -> Preprocess:
    """HPS v2's preprocessing at the model's size."""
    return hpsv2_preprocess(tuple(model.visual.image_size))


def pictures(count: int, side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Smooth images with fine grain, in [0, 1]: noise alone would shift clocks and FP8 errors."""
    generator = torch.Generator(device).manual_seed(side)
    coarse = torch.rand(count, 3, 9, 9, generator=generator, device=device)
    images = torch.empty(count, 3, side, side, device=device, dtype=dtype)
    for some, out in zip(coarse.split(16), images.split(16), strict=True):
        smooth = F.interpolate(some, (side, side), mode="bicubic")
        grain = 0.05 * torch.randn(smooth.shape, generator=generator, device=device)
        out.copy_((smooth + grain).clamp(0, 1))
    return images


def pixels_of(preprocess: Preprocess, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`preprocess` with mean and deviation kept on the device.

    Copied there in every call, as the class does it, they would keep the baselines from being
    recorded as CUDA graphs.
    """
    mean, std = (torch.tensor(v, device=device)[:, None, None]
                 for v in (preprocess.mean, preprocess.std))  # fmt: skip

    def pixels(images: Tensor) -> Tensor:
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        return (preprocess._fit(preprocess._resize(images)) - mean) / std

    return pixels


def texts_of(count: int, width: int, device: torch.device) -> Tensor:
    """Unit vectors `(count, width)`, float32."""
    generator = torch.Generator().manual_seed(count)
    return F.normalize(torch.randn(count, width, generator=generator), dim=-1).to(device)


def flops(weights: VitWeights) -> float:
    """Floating-point operations of one image's features; a product and a sum are two.

    The whole network's, as others count it: the last block's unread rows are not subtracted.
    """
    tokens, width = len(weights.positions) + 1, weights.patch_embed.shape[0]
    total = 2 * (tokens - 1) * weights.patch_embed.numel() + 2 * weights.projection.numel()
    for block in weights.blocks:
        matrices = (block.qkv, block.out, block.fc1, block.fc2)
        total += 2 * tokens * sum(layer.weight.numel() for layer in matrices)
        total += 4 * tokens * tokens * width
    return float(total)


def in_transformers(model: Any, attention: str = "sdpa") -> Any:
    """transformers' `CLIPVisionModelWithProjection` with the image tower's weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    visual = model.visual
    first = visual.transformer.resblocks[0]
    config = CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=first.mlp.c_fc.out_features,
        projection_dim=visual.proj.shape[1],
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=first.attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        hidden_act="gelu" if isinstance(first.mlp.gelu, torch.nn.GELU) else "quick_gelu",
        layer_norm_eps=first.ln_1.eps,
    )
    config._attn_implementation = attention
    with torch.device("meta"):
        made = CLIPVisionModelWithProjection(config)
    state = dict(_transformers_state(visual))
    made = made.to_empty(device=visual.conv1.weight.device).to(visual.conv1.weight.dtype)
    missing, unexpected = made.load_state_dict(state, strict=False)
    left = [name for name in missing if not name.endswith("position_ids")]
    if left or unexpected:
        raise RuntimeError(f"another layout of CLIP weights: {left[:2]}, {list(unexpected)[:2]}")
    positions: Any = made.vision_model.embeddings
    positions.position_ids = torch.arange(
        len(visual.positional_embedding), device=visual.conv1.weight.device
    )[None]
    return made.eval().requires_grad_(False)


def _transformers_state(visual: Any) -> Iterator[tuple[str, Tensor]]:
    """The image tower under transformers' names."""
    root = "vision_model."
    yield root + "embeddings.class_embedding", visual.class_embedding
    yield root + "embeddings.patch_embedding.weight", visual.conv1.weight
    yield root + "embeddings.position_embedding.weight", visual.positional_embedding
    yield "visual_projection.weight", visual.proj.T
    layers = [("pre_layrnorm", visual.ln_pre), ("post_layernorm", visual.ln_post)]
    for index, block in enumerate(visual.transformer.resblocks):
        at = f"encoder.layers.{index}."
        layers += [(at + "layer_norm1", block.ln_1), (at + "layer_norm2", block.ln_2)]
        layers += [(at + "mlp.fc1", block.mlp.c_fc), (at + "mlp.fc2", block.mlp.c_proj)]
        layers += [(at + "self_attn.out_proj", block.attn.out_proj)]
        for kind in ("weight", "bias"):
            joint = getattr(block.attn, f"in_proj_{kind}")
            for letter, part in zip("qkv", joint.chunk(3), strict=True):
                yield f"{root}{at}self_attn.{letter}_proj.{kind}", part
    for name, layer in layers:
        yield f"{root}{name}.weight", layer.weight
        yield f"{root}{name}.bias", layer.bias
