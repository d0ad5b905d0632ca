"""The ops of `steer_kernels`, what each replaces, and what it must compute and move.

Sizes are those of one tower and one batch. The first way of a case is eager PyTorch; the last is
ours.
"""

# steer_kernels is the folder kernels/, which type checkers do not find by that name.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from steer_kernels import attention_cls, fp8, head, linear_gelu, norm, quant
from steer_kernels.resize_patchify import resize_patchify
from torch import Tensor

from benchmarks.kernels.models import pictures, pixels_of, texts_of
from steer.rewards.clip.preprocess import Preprocess
from steer.rewards.clip.tower_weights import VitWeights


Way = Callable[..., Any]
Inputs = tuple[Tensor, ...]


def first(out: Any) -> Tensor:
    """An op's result, or the first of several."""
    return out[0] if isinstance(out, tuple) else out


def dequantised(out: Any) -> Tensor:
    """The values of quantised rows."""
    return fp8.dequantise(out[0], out[1])


@dataclass(frozen=True)
class Case:
    """One op.

    Attributes:
        name: Of the op.
        make: Fresh inputs; the first is what a gradient is for.
        ways: By arm, functions of these inputs.
        read: What of a way's result is compared, and differentiated.
        flop: Operations of the matrix products in a forward; 0 if memory bounds the op.
        moved: Bytes that a forward must read and write.
        backward: Whether the op has a backward of its own.
        side: Of the images, where the op sees images.
        limit: Largest relative error of a way, where that is not its type's.
    """

    name: str
    make: Callable[[], Inputs]
    ways: Mapping[str, Way]
    read: Callable[[Any], Tensor] = first
    flop: float = 0.0
    moved: float = 0.0
    backward: bool = False
    side: int | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Sizes:
    """What the ops of one tower see of one batch.

    Attributes:
        weights: The tower's, in the type that is timed.
        preprocess: From images to its pixels.
        batch: Images.
        sides: Their heights and widths.
    """

    weights: VitWeights
    preprocess: Preprocess
    batch: int
    sides: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.projection.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.weights.projection.dtype

    @property
    def tokens(self) -> int:
        """Per image."""
        return len(self.weights.positions) + 1

    @property
    def rows(self) -> int:
        """Tokens of the batch."""
        return self.batch * self.tokens

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.weights.patch_embed.shape[0]

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return self.weights.blocks[0].fc1.weight.shape[0]

    def random(self, *shape: int) -> Tensor:
        """Gaussian activations."""
        return torch.randn(shape, device=self.device).to(self.dtype)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Every op of a tower's forward."""
    yield from (_resize(sizes, side) for side in sizes.sides)
    yield from _attention(sizes)
    yield _norm(sizes)
    yield from _mlp(sizes)
    products = (sizes.hidden, sizes.width)
    if fp8.fp8_available(sizes.device) and not any(n % fp8.MULTIPLE for n in products):
        yield from _quantised(sizes)
    yield _head(sizes)


def _resize(sizes: Sizes, side: int) -> Case:
    preprocess, patch, dtype = sizes.preprocess, sizes.weights.patch, sizes.dtype

    pixels = pixels_of(preprocess, sizes.device)

    def chain(images: Tensor) -> Tensor:
        """Interpolate, pad, normalise, cast, cut."""
        return F.unfold(pixels(images).to(images.dtype), patch, stride=patch).mT.contiguous()

    def ours(images: Tensor) -> Tensor:
        return resize_patchify(
            images,
            size=preprocess.size[0],
            patch=patch,
            fit="longest",
            mean=preprocess.mean,
            std=preprocess.std,
            clamp=preprocess.clamp,
        )

    count = side * side + preprocess.size[0] ** 2
    return Case(
        "resize_patchify",
        lambda: (pictures(sizes.batch, side, sizes.device, dtype),),
        {"eager": chain, "ours": ours},
        moved=3.0 * sizes.batch * count * dtype.itemsize,
        backward=True,
        side=side,
    )


def _attention(sizes: Sizes) -> Iterator[Case]:
    heads, shape = sizes.weights.heads, (sizes.batch, sizes.tokens, 3 * sizes.width)
    yield Case(
        "attention_cls",
        lambda: (sizes.random(*shape),),
        {
            "eager": lambda qkv: attention_cls.attention_cls_ref(qkv, heads),
            "ours": lambda qkv: attention_cls.attention_cls(qkv, heads),
        },
        flop=4.0 * sizes.rows * sizes.tokens * sizes.width,
    )
    yield Case(
        "attention_cls_row",
        lambda: (sizes.random(*shape),),
        {
            "eager": lambda qkv: attention_cls.attention_cls_row_ref(qkv, heads),
            "ours": lambda qkv: attention_cls.attention_cls_row(qkv, heads),
        },
        moved=2.0 * sizes.rows * sizes.width * sizes.dtype.itemsize,
    )


def _norm(sizes: Sizes) -> Case:
    layer = sizes.weights.blocks[0].ln_1

    def eager(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        summed = x + residual
        weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
        return F.layer_norm(summed, x.shape[-1:], weight, bias, layer.eps), summed

    def ours(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return norm.norm(x, layer.weight, layer.bias, layer.eps, residual)

    shape = (sizes.batch, sizes.tokens, sizes.width)
    return Case(
        "norm",
        lambda: (sizes.random(*shape), sizes.random(*shape)),
        {"eager": eager, "ours": ours},
        moved=4.0 * sizes.rows * sizes.width * sizes.dtype.itemsize,
        backward=True,
    )


def _mlp(sizes: Sizes) -> Iterator[Case]:
    fc1, kind = sizes.weights.blocks[0].fc1, sizes.weights.gelu

    def eager(x: Tensor) -> Tensor:
        weight, bias = fc1.weight.to(x.dtype), fc1.bias.to(x.dtype)
        return linear_gelu.linear_gelu_ref(x, weight, bias, kind)

    def ours(x: Tensor) -> Tensor:
        with _fused_product():
            return linear_gelu.linear_gelu(x, fc1.weight, fc1.bias, kind)

    yield Case(
        "linear_gelu",
        lambda: (sizes.random(sizes.rows, sizes.width),),
        {"eager": eager, "ours": ours},
        flop=2.0 * sizes.rows * sizes.hidden * sizes.width,
        backward=True,
    )
    if kind == "quick":
        yield Case(
            "gelu",
            lambda: (sizes.random(sizes.rows, sizes.hidden),),
            {
                "eager": lambda x: linear_gelu.gelu_ref(x, kind),
                "ours": lambda x: linear_gelu.gelu(x, kind),
            },
            moved=2.0 * sizes.rows * sizes.hidden * sizes.dtype.itemsize,
            backward=True,
        )


@contextmanager
def _fused_product() -> Iterator[None]:
    """The fused kernel, whether or not it is switched on for this architecture."""
    before = os.environ.get(linear_gelu.SWITCH)
    os.environ[linear_gelu.SWITCH] = "fused"
    try:
        yield
    finally:
        os.environ.pop(linear_gelu.SWITCH)
        if before is not None:
            os.environ[linear_gelu.SWITCH] = before


def _quantised(sizes: Sizes) -> Iterator[Case]:
    layer, fc1 = sizes.weights.blocks[0].ln_1, sizes.weights.blocks[0].fc1
    kind, size = sizes.weights.gelu, sizes.dtype.itemsize
    affine = (layer.weight, layer.bias, layer.eps)
    yield Case(
        "norm_quant",
        lambda: (sizes.random(sizes.rows, sizes.width), sizes.random(sizes.rows, sizes.width)),
        {
            "eager": lambda x, r: quant.norm_quant_ref(x, *affine, r),
            "ours": lambda x, r: quant.norm_quant(x, *affine, r),
        },
        read=dequantised,
        moved=sizes.rows * sizes.width * (3.0 * size + 1),
        limit=0.05,
    )
    yield Case(
        "gelu_quant",
        lambda: (sizes.random(sizes.rows, sizes.hidden),),
        {
            "eager": lambda x: quant.gelu_quant_ref(x, kind),
            "ours": lambda x: quant.gelu_quant(x, kind),
        },
        read=dequantised,
        moved=sizes.rows * sizes.hidden * (1.0 * size + 1),
        limit=0.05,
    )
    if sizes.device.type == "cuda" and sizes.dtype != torch.bfloat16:
        return
    weight_q, weight_scale = fp8.quantise_weight(fc1.weight)

    def inputs() -> Inputs:
        x = sizes.random(sizes.rows, sizes.width)
        return (x, *fp8.quantise_ref(x))

    yield Case(
        "linear_fp8",
        inputs,
        {
            "eager": lambda x, *_: F.linear(x, fc1.weight.to(x.dtype), fc1.bias.to(x.dtype)),
            "ours": lambda x, q, s: fp8.linear_fp8(
                q, s, weight_q, weight_scale, fc1.bias, sizes.dtype
            ),
        },
        flop=2.0 * sizes.rows * sizes.hidden * sizes.width,
        limit=0.1,
    )


def _head(sizes: Sizes) -> Case:
    layer, projection = sizes.weights.ln_post, sizes.weights.projection
    texts = texts_of(sizes.batch, projection.shape[1], sizes.device)

    def eager(rows: Tensor) -> Tensor:
        weight, bias = layer.weight.to(rows.dtype), layer.bias.to(rows.dtype)
        hidden = F.layer_norm(rows, rows.shape[-1:], weight, bias, layer.eps)
        features = F.normalize((hidden @ projection.to(rows.dtype)).float(), dim=-1)
        return (features * texts).sum(-1)

    def ours(rows: Tensor) -> Tensor:
        affine = (layer.weight, layer.bias, layer.eps)
        return head.clip_head(rows, *affine, projection, texts, 1.0, paired=True)

    return Case(
        "head",
        lambda: (sizes.random(sizes.batch, sizes.width),),
        {"eager": eager, "ours": ours},
        moved=float(projection.numel() * sizes.dtype.itemsize),
        backward=True,
    )
