"""A tiny masked generative pipeline: images of tokens from a codebook."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from transformers import CLIPTextModelWithProjection

from families.text import EMBED, clip_config, clip_tokenizer


CODES, MASK, SIDE = 24, 31, 4
"""The codebook's size, the mask's token, and tokens along a side."""


def amused() -> Any:
    """A new Amused pipeline with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = UVit2DModel(
            hidden_size=16,
            cond_embed_dim=EMBED,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=EMBED,
            vocab_size=MASK + 1,
            codebook_size=CODES,
            in_channels=16,
            block_out_channels=16,
            num_res_blocks=1,
            block_num_heads=2,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            sample_size=SIDE,
        )
        codes = VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=2,
            num_vq_embeddings=CODES,
            sample_size=8,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        )
        pipe = AmusedPipeline(
            vqvae=codes.eval(),
            tokenizer=clip_tokenizer(),
            text_encoder=CLIPTextModelWithProjection(clip_config()).eval(),
            transformer=transformer.eval(),
            scheduler=AmusedScheduler(mask_token_id=MASK),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
