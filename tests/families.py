"""Tiny pipelines with random weights, built in code: the families that steer is tested on."""

from __future__ import annotations

import functools
import json
import string
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)


BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1),
    "euler_a": lambda: diffusers.EulerAncestralDiscreteScheduler(**BETAS, steps_offset=1),
    "dpm++2m": lambda: diffusers.DPMSolverMultistepScheduler(**BETAS, steps_offset=1),
    "sde-dpm++": lambda: diffusers.DPMSolverMultistepScheduler(
        **BETAS, steps_offset=1, algorithm_type="sde-dpmsolver++"
    ),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**BETAS, steps_offset=1),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**BETAS, steps_offset=1),
    "kdpm2": lambda: diffusers.KDPM2DiscreteScheduler(**BETAS, steps_offset=1),
    "pndm": lambda: diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-dynamic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
}
DENOISING = ["ddim", "euler", "euler_a", "dpm++2m", "sde-dpm++", "unipc", "heun", "kdpm2", "pndm"]
PAIRS = [
    *[("sd", name) for name in DENOISING],
    *[("sdxl", name) for name in ("ddim", "euler", "euler_a", "dpm++2m", "unipc")],
    ("sd3", "flow"),
    ("flux", "flow-dynamic"),
]
"""Family x scheduler, each of which must equal the plain pipeline bit for bit."""

WINDOW = 16
_EMBED = 16


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer of single letters."""
    letters = string.ascii_lowercase + string.digits + ",.'"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    vocabulary["ab</w>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=WINDOW
    )


@functools.cache
def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words from a tiny vocabulary; the rest is unknown."""
    words = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "of", "left"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def _clip_config(**config: Any) -> CLIPTextConfig:
    size = len(clip_tokenizer())
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=_EMBED,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        projection_dim=_EMBED,
        bos_token_id=size - 3,
        eos_token_id=size - 2,
        pad_token_id=1,
        **config,
    )


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=16, d_model=_EMBED, d_kv=4, d_ff=16, num_layers=1, num_heads=2, is_decoder=False
    )
    return T5EncoderModel(config)


def _vae(channels: int = 4, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        **config,
    )


_UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}


def _sd() -> Any:
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(**_UNET, cross_attention_dim=_EMBED, attention_head_dim=4),
        scheduler=SCHEDULERS["ddim"](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    unet = UNet2DConditionModel(
        **_UNET,
        cross_attention_dim=2 * _EMBED,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + _EMBED,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=SCHEDULERS["euler"](),
        add_watermarker=False,
    )


def _sd3() -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * _EMBED,
        caption_projection_dim=16,
        pooled_projection_dim=2 * _EMBED,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=SCHEDULERS["flow"](),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=16, d_model=2 * _EMBED, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        ),
        tokenizer_3=t5_tokenizer(),
    )


def _flux() -> Any:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_EMBED,
        pooled_projection_dim=_EMBED,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=SCHEDULERS["flow-dynamic"](),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
    )


FAMILIES: dict[str, Callable[[], Any]] = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}


def build(family: str, scheduler: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A new pipeline, for tests that change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = FAMILIES[family]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
            if dtype != torch.float32:
                part.to(dtype)
    if scheduler is not None:
        pipe.scheduler = SCHEDULERS[scheduler]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


_DEFAULT = {"sd": "ddim", "sdxl": "euler", "sd3": "flow", "flux": "flow-dynamic"}


@functools.cache
def _cached(family: str, dtype: torch.dtype) -> Any:
    return build(family, dtype=dtype)


def shared(family: str, scheduler: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline that tests share and leave as it is, but for its scheduler."""
    pipe = _cached(family, dtype)
    pipe.scheduler = SCHEDULERS[scheduler or _DEFAULT[family]]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(family: str, **more: Any) -> dict[str, Any]:
    """A short call of the family: prompt, size, steps, a fresh generator."""
    given: dict[str, Any] = {
        "prompt": "a red circle",
        "height": 16,
        "width": 16,
        "num_inference_steps": 4,
        "generator": seeded(0),
        "output_type": "latent",
    }
    if family in ("sd3", "flux"):
        given["max_sequence_length"] = 8
    return {**given, **more}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A cheap reward: the mean of the red channel."""
    return images[:, 0].mean((1, 2))
