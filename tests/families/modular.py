"""Tiny modular pipelines, each with the parts of a tiny classic one."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model

from families import arguments, build, seeded
from families.models import vae
from families.schedules import SCHEDULERS
from families.text import EMBED, word_tokenizer


BLOCKS = {
    "sdxl": "StableDiffusionXLAutoBlocks",
    "flux": "FluxAutoBlocks",
    "wan": "WanBlocks",
    "qwen": "QwenImageAutoBlocks",
    "z-image": "ZImageAutoBlocks",
}
"""The blocks of each family's modular pipeline."""

GUIDANCE = {"qwen": "true_cfg_scale"}
"""What a classic pipeline calls its scale, if not `guidance_scale`."""

SCALE = 3.0


def _language_model() -> Any:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=16,
            hidden_size=EMBED,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
        )
    )


def _tokenizer() -> Any:
    return word_tokenizer()


def _qwen() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=EMBED,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    )
    return diffusers.QwenImagePipeline(
        scheduler=SCHEDULERS["flow-dynamic"](),
        vae=autoencoder,
        transformer=transformer,
        text_encoder=_language_model(),
        tokenizer=_tokenizer(),
    )


def _z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=EMBED,
        axes_dims=[4, 2, 2],
        axes_lens=[64, 32, 32],
    )
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "pad_token" in name:
                weight.normal_()  # they are made empty
    tokenizer = _tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    return diffusers.ZImagePipeline(
        scheduler=SCHEDULERS["flow"](),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        transformer=transformer,
        text_encoder=_language_model(),
        tokenizer=tokenizer,
    )


_OWN = {"qwen": _qwen, "z-image": _z_image}


def classic_of(family: str) -> Any:
    """The classic pipeline of a family."""
    if family not in _OWN:
        return build(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = _OWN[family]()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modular_of(family: str, classic: Any) -> Any:
    """The modular pipeline with a classic one's parts, guided by `SCALE` where it has a guider."""
    pipe = getattr(diffusers, BLOCKS[family])().init_pipeline()
    names = {spec.name for spec in pipe._blocks.expected_components}
    found = {name: part for name, part in classic.components.items() if name in names}
    pipe.update_components(**{name: part for name, part in found.items() if part is not None})
    if "guider" in names:
        guider = diffusers.guiders.ClassifierFreeGuidance(guidance_scale=SCALE)
        pipe.update_components(guider=guider)
    if "image_processor" in names:
        pipe.update_components(image_processor=classic.image_processor)
    for block in _all_of(pipe._blocks):
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
    return pipe


def calls(family: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A short call of the classic pipeline, and the same of the modular one."""
    given = {**arguments(family, output_type="pt"), **more}
    if family == "qwen":
        texts = given["prompt"]
        given["negative_prompt"] = "blue" if isinstance(texts, str) else ["blue"] * len(texts)
    classic, modular = dict(given), {**given, "generator": seeded(0), **more}
    if family != "flux":
        scale = SCALE - 1 if family == "z-image" else SCALE  # added to the prompt's own answer
        classic[GUIDANCE.get(family, "guidance_scale")] = scale
    return classic, modular


def _all_of(block: Any) -> list[Any]:
    return [block, *(one for part in block.sub_blocks.values() for one in _all_of(part))]
