"""Stage 7: a flow model of the same world, in the layout of Stable Diffusion 3.

A small MMDiT with two CLIP text encoders and no T5. It starts from what the world has: text encoder
1 is the UNet's, text encoder 2 the contrastive model's text tower, and the middle of the
transformer is pulled towards the contrastive model's patch features (REPA, arXiv:2410.06940),
without which a transformer this small spends most of its steps finding out what a shape is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from recipes.shapes_world.clip import normalise_pixels
from recipes.shapes_world.data import Pool
from recipes.shapes_world.recipe import Recipe
from recipes.shapes_world.stage import share, train
from recipes.shapes_world.text import CONTEXT_LENGTH, Encoder
from steer.shapes.captions import caption
from steer.shapes.scenes import Spec


WIDTH, LAYERS, HEADS, PATCH = 192, 6, 6, 2
TEXT = 128
CFG_DROP = 0.1
LOGIT_MEAN, LOGIT_STD = 0.3, 1.0
"""Levels are drawn as sigmoid(mean + std n), Stable Diffusion 3's way, a little noisier."""
ALIGN_LAYER, ALIGN_WEIGHT = 3, 0.5
PADDED_EVERY, PADDED_TOKENS, PADDED_BATCH = 32, 256, 16
"""Without a T5 the pipeline appends zeros in its place, by default 256; `max_sequence_length=0`
leaves them out. Some steps have them, in smaller batches, so that the model knows both."""


def build_transformer() -> SD3Transformer2DModel:
    """The untrained denoiser on 4 x 16 x 16 latents: 64 image tokens."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=PATCH,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * TEXT,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=16 // PATCH,
        qk_norm="rms_norm",
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The pipeline's default sampler."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def text_encoder(tokenizer: Any, layers: int, act: str) -> CLIPTextModelWithProjection:
    """An untrained text encoder of the world's width."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=4 * TEXT,
        projection_dim=TEXT,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModelWithProjection(config)


def from_unet(pipe: Any) -> CLIPTextModelWithProjection:
    """Text encoder 1: the diffusion pipeline's, with a projection of its own."""
    known = pipe.text_encoder.config
    model = text_encoder(pipe.tokenizer, known.num_hidden_layers, known.hidden_act)
    prefix = "text_model."
    state = {
        prefix + name.removeprefix(prefix): value
        for name, value in pipe.text_encoder.state_dict().items()
    }
    _load(model, state, {"text_projection.weight"})
    return model


def from_clip(clip: Any, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Text encoder 2: the contrastive model's text tower in transformers' names."""
    blocks = clip.transformer.resblocks
    model = text_encoder(tokenizer, len(blocks), "gelu")
    state = {
        "text_model.embeddings.token_embedding.weight": clip.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": clip.positional_embedding,
        "text_model.final_layer_norm.weight": clip.ln_final.weight,
        "text_model.final_layer_norm.bias": clip.ln_final.bias,
        "text_projection.weight": clip.text_projection.T.contiguous(),
    }
    for number, block in enumerate(blocks):
        parts = {"layer_norm1": block.ln_1, "layer_norm2": block.ln_2}
        parts |= {"mlp.fc1": block.mlp.c_fc, "mlp.fc2": block.mlp.c_proj}
        parts |= {"self_attn.out_proj": block.attn.out_proj}
        values = {f"{name}.{kind}": getattr(p, kind) for name, p in parts.items() for kind in KINDS}
        for kind in KINDS:
            thirds = getattr(block.attn, f"in_proj_{kind}").chunk(3)
            values |= {f"self_attn.{n}_proj.{kind}": t for n, t in zip("qkv", thirds, strict=True)}
        state |= {f"text_model.encoder.layers.{number}.{name}": v for name, v in values.items()}
    _load(model, state, set())
    return model


KINDS = ("weight", "bias")


def _load(model: nn.Module, state: dict[str, Any], fresh: set[str]) -> None:
    """Load all weights but the fresh ones, under transformers 4's names or 5's."""
    own = set(model.state_dict())
    prefix = "text_model."
    named = {
        name if name in own else name.removeprefix(prefix): value.detach().float().clone()
        for name, value in state.items()
        if not name.endswith("position_ids")
    }
    missing, unexpected = model.load_state_dict(named, strict=False)
    wrong = (set(missing) - fresh, set(unexpected))
    if any(wrong):
        raise ValueError(f"missing and unexpected weights: {wrong}")


class FlowDenoiser(nn.Module):
    """Text encoders, transformer and the head that aligns its middle; the head is thrown away."""

    def __init__(
        self, one: CLIPTextModelWithProjection, two: CLIPTextModelWithProjection, features: int
    ) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = one, two
        self.transformer = build_transformer()
        self.align = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, features)
        )
        self._middle: list[Tensor] = []
        self.transformer.transformer_blocks[ALIGN_LAYER - 1].register_forward_hook(self._note)

    def _note(self, block: nn.Module, given: Any, outputs: tuple[Tensor, Tensor]) -> None:
        self._middle[:] = [outputs[1]]

    def context(self, ids: Tensor, ids_2: Tensor, padding: int = 0) -> tuple[Tensor, Tensor]:
        """What the pipeline makes of a prompt: token and pooled embeddings."""
        found = [
            encoder(rows, output_hidden_states=True)
            for encoder, rows in ((self.text_encoder, ids), (self.text_encoder_2, ids_2))
        ]
        tokens = torch.cat([f.hidden_states[-2] for f in found], -1)
        pooled = torch.cat([f.text_embeds for f in found], -1)
        return F.pad(tokens, (0, 0, 0, padding)), pooled

    def velocity(self, x: Tensor, sigma: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
        """d x / d sigma at `x = (1 - sigma) x0 + sigma noise`, `(B, 4, 16, 16)`."""
        return self.transformer(x, context[0], context[1], 1000 * sigma).sample

    def forward(
        self, x: Tensor, sigma: Tensor, ids: Tensor, ids_2: Tensor, padding: int
    ) -> tuple[Tensor, Tensor]:
        """Velocities, and the middle of the transformer as patch features `(B, 64, features)`."""
        found = self.velocity(x, sigma, self.context(ids, ids_2, padding))
        return found, self.align(self._middle.pop())


@torch.no_grad()
def patch_features(clip: open_clip.CLIP, pool: Pool, device: str) -> Tensor:
    """The contrastive model's patch tokens of every scene, `(N, 64, width)` float16.

    Less their mean, which all patches share, and of unit length.
    """
    visual: Any = clip.visual.to(device).eval()
    kept: list[Tensor] = []
    visual.ln_post.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    rows = []
    for first in range(0, len(pool.specs), 128):
        index = np.arange(first, min(first + 128, len(pool.specs)))
        kept.clear()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            visual.forward_intermediates(normalise_pixels(pool.batch(index, device)))
        rows.append(kept[0][:, -64:].half().cpu())
    found = torch.cat(rows)
    found -= found[:2048].float().mean((0, 1)).half()
    for part in found.split(2048):
        part.copy_(F.normalize(part.float(), dim=-1))
    return found


def draw_levels(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1), logit-normal."""
    return torch.sigmoid(LOGIT_MEAN + LOGIT_STD * torch.randn(count, generator=generator))


def train_flow(
    model: FlowDenoiser,
    specs: list[Spec],
    latents: dict[str, Tensor],
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    recipe: Recipe,
    folder: Path,
    device: str,
) -> None:
    """Flow matching on the pool's latents, with fresh paraphrases at each step.

    Args:
        model: Trained in place.
        specs: What the pool's scenes show.
        latents: `mean`, `std` `(N, 4, 16, 16)` and `features` `(N, 64, width)`.
        tokenizers: Of the two text encoders.
        recipe, folder, device: As in all stages.
    """
    encoders = [Encoder(tokenizer) for tokenizer in tokenizers]
    mean, std, features = (latents[name] for name in ("mean", "std", "features"))

    def loss(rng: np.random.Generator, noise: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        padded = rng.integers(PADDED_EVERY) == 0
        size = min(PADDED_BATCH, share(recipe.flow)) if padded else share(recipe.flow)
        rows = rng.integers(len(specs), size=size)
        texts = ["" if rng.random() < CFG_DROP else caption(specs[i], rng) for i in rows]
        index = torch.from_numpy(rows)
        z, eps = torch.randn(2, size, *mean.shape[1:], generator=noise).to(device)
        x0 = mean[index].to(device).float() + std[index].to(device).float() * z
        sigma = draw_levels(size, noise).to(device)
        level = sigma.view(-1, 1, 1, 1)
        ids = [encode(texts).to(device) for encode in encoders]
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            found, middle = model(
                (1 - level) * x0 + level * eps, sigma, *ids, PADDED_TOKENS if padded else 0
            )
        error = ((found.float() - (eps - x0)) ** 2).mean()
        alike = F.cosine_similarity(middle.float(), features[index].to(device).float(), dim=-1)
        return error - ALIGN_WEIGHT * alike.mean(), {
            "velocity": error.detach(),  # pyright: ignore[reportReturnType]
            "alike": alike.mean().detach(),  # pyright: ignore[reportReturnType]
        }

    train("flow", model, loss, recipe.flow, folder, recipe.seed)


def assemble(
    model: FlowDenoiser, vae: AutoencoderKL, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
) -> StableDiffusion3Pipeline:
    """The trained parts as a pipeline; the autoencoder's latents are the world's own."""
    vae.register_to_config(shift_factor=0.0)  # which SD3's pipeline adds
    parts: dict[str, Any] = {
        "transformer": model.transformer,
        "scheduler": build_scheduler(),
        "vae": vae,
        "text_encoder": model.text_encoder,
        "tokenizer": tokenizers[0],
        "text_encoder_2": model.text_encoder_2,
        "tokenizer_2": tokenizers[1],
        "text_encoder_3": None,
        "tokenizer_3": None,
    }
    return StableDiffusion3Pipeline(**parts)
