"""The weights of a CLIP vision tower as the fused ops want them: views, nothing is copied.

Both layouts of published checkpoints (open_clip's, and transformers' through `clip_layout`) end in
open_clip's `VisionTransformer`; this reads one of those.
"""

# steer_kernels is the folder kernels/, which type checkers do not find by that name.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True)
class Norm:
    """A LayerNorm: weight and bias `(width,)`."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class Linear:
    """A linear layer: weight `(N, K)`, bias `(N,)`, and where it runs in FP8 the quantised weight.

    Attributes:
        quantised: E4M3 `(N, K)` and float32 scales `(N,)`.
    """

    weight: Tensor
    bias: Tensor
    quantised: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block: attention, then the two layers of the MLP."""

    ln_1: Norm
    qkv: Linear
    out: Linear
    ln_2: Norm
    fc1: Linear
    fc2: Linear


@dataclass(frozen=True)
class VitWeights:
    """A CLIP vision tower.

    Attributes:
        patch_embed: `(width, 3 * patch**2)`, the convolution as a matrix.
        class_token: `(width,)`, with its position added.
        positions: `(tokens - 1, width)`, those of the patches.
        ln_pre: Norm before the first block, or None.
        blocks: All blocks.
        ln_post: Norm of the class token after the last block.
        projection: `(width, features)`.
        heads: Attention heads.
        gelu: Kind of the activation.
        size: Side of the image in pixels.
        patch: Side of a patch in pixels.
    """

    patch_embed: Tensor
    class_token: Tensor
    positions: Tensor
    ln_pre: Norm | None
    blocks: tuple[Block, ...]
    ln_post: Norm
    projection: Tensor
    heads: int
    gelu: Literal["erf", "quick"]
    size: int
    patch: int


def unfit(model: nn.Module) -> str | None:
    """Why the fused tower cannot run this model's images, or None where it can.

    It runs open_clip's `VisionTransformer` with a class token, plain blocks, and one GELU, exact or
    quick: ViT-B, L, H, g and bigG of OpenAI, LAION and their fine-tunes.
    """
    visual: Any = getattr(model, "visual", None)
    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP):
        return f"its model is a {type(model).__name__}, not a CLIP"
    if type(visual) is not VisionTransformer:
        return f"its image tower is a {type(visual).__name__}, not a plain vision transformer"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.output_tokens:
        return "it does not read its class token alone"
    if visual.proj is None:
        return "it has no projection"
    (rows, columns), patch = visual.image_size, list[int](visual.patch_size)
    if rows != columns or len(set(patch)) > 1 or rows % patch[0]:
        return f"its image of {rows} x {columns} is not a square of square patches"
    if not isinstance(visual.ln_pre, nn.LayerNorm | nn.Identity):
        return f"its norm is a {type(visual.ln_pre).__name__}"
    reasons = (_unfit_block(block) for block in visual.transformer.resblocks)
    return next((reason for reason in reasons if reason), None)


def _unfit_block(block: Any) -> str | None:
    if type(block) is not ResidualAttentionBlock:
        return f"its blocks are {type(block).__name__}, not plain ones"
    if not isinstance(block.ls_1, nn.Identity) or not isinstance(block.ls_2, nn.Identity):
        return "its blocks have layer scales"
    if not all(isinstance(part, nn.LayerNorm) for part in (block.ln_1, block.ln_2)):
        return f"its norm is a {type(block.ln_1).__name__}"
    exact = isinstance(block.mlp.gelu, nn.GELU) and block.mlp.gelu.approximate == "none"
    if not exact and not isinstance(block.mlp.gelu, QuickGELU):
        return f"its activation is {block.mlp.gelu}, neither the exact GELU nor QuickGELU"
    return None


def vit_weights(model: nn.Module) -> VitWeights:
    """The vision tower of an open_clip model, detached; shares the model's memory.

    Raises:
        ValueError: A tower that the fused ops cannot run; the message says why.
    """
    if reason := unfit(model):
        raise ValueError(f"the fused tower cannot run this model: {reason}; pass fused=False")
    visual: Any = model.visual
    blocks = list(visual.transformer.resblocks)
    positions = visual.positional_embedding.detach().to(visual.conv1.weight.dtype)
    return VitWeights(
        patch_embed=visual.conv1.weight.detach().flatten(1),
        class_token=visual.class_embedding.detach() + positions[0],
        positions=positions[1:],
        ln_pre=_norm(visual.ln_pre) if isinstance(visual.ln_pre, nn.LayerNorm) else None,
        blocks=tuple(map(_block, blocks)),
        ln_post=_norm(visual.ln_post),
        projection=visual.proj.detach(),
        heads=blocks[0].attn.num_heads,
        gelu="quick" if isinstance(blocks[0].mlp.gelu, QuickGELU) else "erf",
        size=visual.image_size[0],
        patch=visual.patch_size[0],
    )


def _block(block: Any) -> Block:
    attention = block.attn
    return Block(
        ln_1=_norm(block.ln_1),
        qkv=Linear(attention.in_proj_weight.detach(), attention.in_proj_bias.detach()),
        out=_linear(attention.out_proj),
        ln_2=_norm(block.ln_2),
        fc1=_linear(block.mlp.c_fc),
        fc2=_linear(block.mlp.c_proj),
    )


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight.detach(), norm.bias.detach(), norm.eps)


def _linear(linear: nn.Linear) -> Linear:
    return Linear(linear.weight.detach(), linear.bias.detach())


def with_fp8(weights: VitWeights) -> VitWeights:
    """The same tower with qkv, fc1 and fc2 of all blocks but the first and the last in FP8.

    Those two blocks, the attention's output projection (whose input no op of ours quantises on the
    way), the patch embedding and the head keep their precision.

    Raises:
        ValueError: Fewer than three blocks, weights that the device's FP8 products do not take, or
            a device without FP8.
    """
    first, *middle, last = weights.blocks
    if not middle:
        raise ValueError(f"fp8: a tower of {len(weights.blocks)} blocks has none between two ends")
    on_gpu = weights.projection.device.type == "cuda"
    if on_gpu and weights.projection.dtype != torch.bfloat16:
        raise ValueError(
            f"fp8 with dtype={weights.projection.dtype}: FP8 products on a GPU give bfloat16; "
            "pass dtype=torch.bfloat16"
        )
    return replace(weights, blocks=(first, *map(_quantise, middle), last))


def _quantise(block: Block) -> Block:
    from steer_kernels.quant import quantise_weight

    def of(layer: Linear) -> Linear:
        if any(side % 16 for side in layer.weight.shape):
            raise ValueError(
                f"fp8: a layer of {tuple(layer.weight.shape)}: FP8 products want multiples of 16; "
                "keep this tower in bfloat16"
            )
        return replace(layer, quantised=quantise_weight(layer.weight))

    return replace(block, qkv=of(block.qkv), fc1=of(block.fc1), fc2=of(block.fc2))


def tensors(weights: VitWeights) -> Iterator[Tensor]:
    """Every unquantised tensor of the tower, in a fixed order."""
    yield from (weights.patch_embed, weights.class_token, weights.positions, weights.projection)
    norms = [weights.ln_post, *([weights.ln_pre] if weights.ln_pre else [])]
    layers: list[Norm | Linear] = [*norms]
    for block in weights.blocks:
        layers += [block.ln_1, block.qkv, block.out, block.ln_2, block.fc1, block.fc2]
    for layer in layers:
        yield from (layer.weight, layer.bias)
