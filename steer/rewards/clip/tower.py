"""A CLIP vision tower run by the fused ops of `steer_kernels`: images to scores, and back.

What differs from running open_clip's modules, all of it exact up to rounding:

- resize, padding, normalisation and patches are one pass from the decoded image, and the patch
  embedding is a matrix product;
- each norm also adds the residual; attention reads queries, keys and values in place;
- only the class token is read in the end, so the last block computes only its row (from all keys
  and values);
- norm, projection, length and the products with the prompts' features are one op, in float32;
- weights get no gradient; images get theirs chunk by chunk, so that the activations of one chunk
  are held, however large the population;
- on CUDA, graphs replace the launches (`vit_graphs`).
"""

# steer_kernels is the folder kernels/, which type checkers do not find by that name.
# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from steer_kernels.attention_cls import attention_cls, attention_cls_row
from steer_kernels.head import clip_head
from steer_kernels.linear_gelu import linear_gelu
from steer_kernels.norm import norm
from steer_kernels.quant import gelu_quant, linear_fp8, norm_quant
from steer_kernels.resize_patchify import resize_patchify
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from steer.rewards.clip.graphs import BUCKETS, Graphs
from steer.rewards.clip.preprocess import Preprocess, work_dtype
from steer.rewards.clip.tower_weights import Block, Linear, Norm, VitWeights, vit_weights, with_fp8


class VitTower:
    """One model's vision tower.

    Args:
        model: An open_clip model whose tower `unfit` finds nothing against; frozen, on its device.
            Its weights are shared, not copied.
        fp8: Run most products in FP8 (E4M3, one scale per token and output channel), forward only.
        chunk: Most images run at once.
        graphs: Use CUDA graphs where they are usable; an object of that class to share or replace
            them.

    Raises:
        ValueError: A tower that does not fit, or FP8 where it is not to be had.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fp8: bool = False,
        chunk: int = BUCKETS[-1],
        graphs: bool | Graphs = True,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: run at least one image at a time")
        weights = vit_weights(model)
        self.visual: Any = model.visual
        self.weights: VitWeights = with_fp8(weights) if fp8 else weights
        self.fp8, self.chunk = fp8, chunk
        self.dtype, self.device = weights.projection.dtype, weights.projection.device
        self.graphs = Graphs(chunk) if graphs is True else graphs or None

    def patches(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] to normalised patches; differentiable.

        Returns:
            `(B, (size / patch)**2, 3 * patch**2)` in the tower's type.

        Raises:
            ValueError: Images on another device.
        """
        self._check_device(images=images)
        if self.dtype == torch.float64:
            images = images.double()
        preprocess = canonical(preprocess, images)
        if not _one_pass(preprocess):
            pixels = preprocess(images.to(work_dtype(self.dtype))).to(self.dtype)
            return F.unfold(pixels, self.weights.patch, stride=self.weights.patch).mT
        return resize_patchify(
            images,
            size=preprocess.size[0],
            patch=self.weights.patch,
            fit="longest" if preprocess.resize == "longest" else "shortest",
            mean=preprocess.mean,
            std=preprocess.std,
            antialias=preprocess.antialias,
            clamp=preprocess.clamp,
            crop=preprocess.crop,
            dtype=self.dtype,
        )

    def rows(self, patches: Tensor) -> Tensor:
        """Patches to class tokens after the last block `(B, width)`; no gradient."""
        with torch.no_grad():
            if self.graphs and self.graphs.usable(patches):
                return self.graphs.run(self._rows, patches)[0]
            return torch.cat([self.trunk(part) for part in patches.split(self.chunk)])

    def scores(self, patches: Tensor, texts: Tensor, scale: float = 1.0) -> Tensor:
        """`scale` times the cosine of each image and its own text; differentiable in the patches.

        Where a gradient is wanted, forward and backward run together, chunk by chunk, and what is
        kept is the gradient of every score. Second derivatives are refused.

        Args:
            patches: `(B, tokens, 3 * patch**2)`, from `patches`.
            texts: `(B, features)`; where they are not unit vectors the cosine is times their
                length.
            scale: The factor.

        Returns:
            `(B,)` float32, float64 for a tower in float64.

        Raises:
            ValueError: A gradient through FP8, or tensors on another device.
        """
        self._check_device(patches=patches, texts=texts)
        if not (torch.is_grad_enabled() and patches.requires_grad):
            return self.head(self.rows(patches), texts, scale)
        if self.fp8:
            raise ValueError(
                "images.requires_grad=True with fp8: FP8 has no gradient here; use a reward "
                "without it (fused=True) for gradients, or score under torch.no_grad()"
            )
        return scale * _Scores.apply(patches, texts.detach(), self)

    def scores_and_slopes(self, patches: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines `(B,)`, and the gradient of each with respect to its own image's patches."""
        if self.graphs and self.graphs.usable(patches):
            scores, slopes = self.graphs.run(self._slopes, patches, texts)
            return scores, slopes
        parts = zip(patches.split(self.chunk), texts.split(self.chunk), strict=True)
        scores, slopes = zip(*(self._slopes(*part) for part in parts), strict=True)
        return torch.cat(scores), torch.cat(slopes)

    def _check_device(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            if tensor.device != self.device:
                place = f"{name} on {tensor.device}, the tower on {self.device}"
                raise ValueError(f"{place}: move them to one device")

    def _rows(self, patches: Tensor) -> tuple[Tensor]:
        return (self.trunk(patches),)

    def _slopes(self, patches: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = patches.detach().requires_grad_()
            scores = self.head(self.trunk(leaf), texts)
            (slopes,) = torch.autograd.grad(scores.sum(), leaf)
        return scores.detach(), slopes

    def head(self, rows: Tensor, texts: Tensor, scale: float = 1.0) -> Tensor:
        """Class tokens `(B, width)` and texts `(B, features)` to scores `(B,)`."""
        after = self.weights.ln_post
        projection = self.weights.projection
        return clip_head(
            rows, after.weight, after.bias, after.eps, projection, texts, scale, paired=True
        )

    def trunk(self, patches: Tensor) -> Tensor:
        """Patches to class tokens `(B, width)`, all at once, by plain autograd."""
        weights = self.weights
        tokens = F.linear(patches, weights.patch_embed) + weights.positions
        first = weights.class_token.expand(len(tokens), 1, -1)
        stream = torch.cat([first, tokens], 1)
        if weights.ln_pre is not None:
            stream = _norm(stream, weights.ln_pre)[0]
        added: Tensor | None = None
        for block in weights.blocks[:-1]:
            added, stream = self._block(block, stream, added)
        return self._last(weights.blocks[-1], stream, added)

    def _block(self, block: Block, stream: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the block adds to the stream, and the stream without it."""
        if block.qkv.quantised:
            return self._block_fp8(block, stream, added)
        normed, stream = _norm(stream, block.ln_1, added)
        qkv = F.linear(normed, block.qkv.weight, block.qkv.bias)
        mixed = attention_cls(qkv, self.weights.heads)
        return self._mlp(block, F.linear(mixed, block.out.weight, block.out.bias), stream)

    def _mlp(self, block: Block, added: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        normed, stream = _norm(stream, block.ln_2, added)
        hidden = linear_gelu(normed, block.fc1.weight, block.fc1.bias, self.weights.gelu)
        return F.linear(hidden, block.fc2.weight, block.fc2.bias), stream

    def _last(self, block: Block, stream: Tensor, added: Tensor | None) -> Tensor:
        """The class token's row of the last block."""
        normed, stream = _norm(stream, block.ln_1, added)
        qkv = F.linear(normed, block.qkv.weight, block.qkv.bias)
        mixed = attention_cls_row(qkv, self.weights.heads)
        row = F.linear(mixed, block.out.weight, block.out.bias)
        added, row = self._mlp(block, row, stream[:, 0])
        return added + row

    def _block_fp8(
        self, block: Block, stream: Tensor, added: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q, scale, stream = _norm_quant(stream, block.ln_1, added)
        qkv = _linear_fp8(q, scale, block.qkv, self.dtype)
        mixed = attention_cls(qkv, self.weights.heads)
        mixed = F.linear(mixed, block.out.weight, block.out.bias)
        q, scale, stream = _norm_quant(stream, block.ln_2, mixed)
        hidden = _linear_fp8(q, scale, block.fc1, self.dtype)
        q, scale = gelu_quant(hidden, self.weights.gelu)
        return _linear_fp8(q, scale, block.fc2, self.dtype), stream


class _Scores(torch.autograd.Function):
    """Cosines of patches and texts, whose gradient is computed with them."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, texts: Tensor, tower: VitTower) -> Tensor:
        scores, slopes = tower.scores_and_slopes(patches.detach(), texts)
        ctx.save_for_backward(slopes)
        return scores

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (upstream[0][:, None, None] * slopes).to(slopes.dtype), None, None


def _norm(stream: Tensor, layer: Norm, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The normalised stream, and the stream itself, after `added` went into it."""
    if added is None:
        return norm(stream, layer.weight, layer.bias, layer.eps)
    return norm(added, layer.weight, layer.bias, layer.eps, stream)


def _norm_quant(
    stream: Tensor, layer: Norm, added: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    if added is None:
        return norm_quant(stream, layer.weight, layer.bias, layer.eps)
    return norm_quant(added, layer.weight, layer.bias, layer.eps, stream)


def _linear_fp8(q: Tensor, scale: Tensor, layer: Linear, dtype: torch.dtype) -> Tensor:
    assert layer.quantised is not None
    return linear_fp8(q, scale, *layer.quantised, layer.bias, dtype)


def canonical(preprocess: Preprocess, images: Tensor) -> Preprocess:
    """The same preprocessing of these images, under one name for all that do the same to them.

    A square image that becomes a square one is neither cropped, padded nor squashed.
    """
    height, width = images.shape[-2:]
    rows, columns = preprocess.size
    if height == width and rows == columns:
        return replace(preprocess, resize="shortest", crop="round", fill=0.0)
    return preprocess


def _one_pass(preprocess: Preprocess) -> bool:
    """Whether `resize_patchify` does it; what it does not do is done in steps."""
    padded = preprocess.resize == "longest" and preprocess.fill != 0
    fits = preprocess.resize != "squash" and preprocess.size[0] == preprocess.size[1]
    return fits and preprocess.interpolation == "bicubic" and not padded
