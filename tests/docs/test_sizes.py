"""Weights that the start pages name, counted on the meta device from published configurations."""

from __future__ import annotations

import re
from pathlib import Path

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)


START = Path(__file__).parents[2] / "docs" / "start"


def billions(*models: nn.Module) -> float:
    return sum(p.numel() for model in models for p in model.parameters()) / 1e9


def autoencoder(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def clip_l() -> CLIPTextModel:
    sizes = {"hidden_size": 768, "intermediate_size": 3072}
    return CLIPTextModel(CLIPTextConfig(**sizes, num_hidden_layers=12, num_attention_heads=12))


def sdxl() -> float:
    unet = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280}
    big_g = CLIPTextConfig(**sizes, num_hidden_layers=32, num_attention_heads=20)
    return billions(unet, clip_l(), CLIPTextModelWithProjection(big_g), autoencoder(4))


def flux() -> float:
    sizes = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24}
    t5 = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu", vocab_size=32128))
    transformer = FluxTransformer2DModel(guidance_embeds=True)
    return billions(transformer, t5, clip_l(), autoencoder(16))


def test_sizes_are_as_the_pages_say() -> None:
    with init_empty_weights():
        counted = {"sdxl": sdxl(), "flux": flux()}
    for name, billion in counted.items():
        told = re.search(r"(\d+) GB[^\n]*?\(([\d.]+) billion", (START / f"{name}.md").read_text())
        assert told is not None
        assert round(2 * billion) == int(told[1])
        assert abs(billion - float(told[2])) < 0.05
