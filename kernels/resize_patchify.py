"""From decoded images to the patches a vision tower eats, in one pass, forward and backward.

Antialiased bicubic resize, crop or padding, clamp, normalisation, patches and cast: eager PyTorch
takes about ten launches for them, and its resize accumulates gradients with atomics. Here one
program makes one tile of one patch by two small products per channel, `Wy @ (X @ Wx)`, with the
tables of `resize_tables`; the backward is the transposed pair, writes every pixel once and is
deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from steer_kernels.common import (
    HALVES,
    check_floating,
    check_span,
    on,
    runs_triton,
    triton,
)
from steer_kernels.resize_kernels import resize_bwd_kernel, resize_fwd_kernel
from steer_kernels.resize_tables import (
    FIXED_POINT,
    INPUT_TILE,
    OUTPUT_TILE,
    Axis,
    axis,
    target,
)
from torch import Tensor


def _passes_edges() -> bool:
    """Whether `clamp` lets a gradient through at its very bounds: torch's releases differ."""
    with torch.inference_mode(False), torch.enable_grad():
        edge = torch.zeros((), device="cpu", requires_grad=True)
        return bool(torch.autograd.grad(edge.clamp(0, 1), edge)[0])


_EDGES = _passes_edges()


def resize_patchify(
    images: Tensor,
    *,
    size: int = 224,
    patch: int = 14,
    fit: Literal["longest", "shortest"] = "shortest",
    mean: Sequence[float],
    std: Sequence[float],
    value_range: tuple[float, float] = (0.0, 1.0),
    antialias: bool = True,
    match: Literal["torch", "pil"] = "torch",
    clamp: bool = True,
    cut: bool = False,
    crop: Literal["round", "floor"] = "round",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Resized, normalised patches of images; differentiable in the images.

    `match="torch"` equals `F.interpolate(mode="bicubic", antialias=...)` in float32.
    `match="pil"` equals Pillow bit for bit: pixels are rounded to 8 bits first (as
    `(x * 255).round()`), and again between the horizontal and the vertical pass; the products are
    sums of whole numbers below 2**24, exact on tensor cores. Its gradient goes straight through the
    roundings. float64 images always run the reference.

    Where pixels that are all white resize to 1 up to rounding, that rounding decides whether the
    clamp lets their gradient through; so it does in eager PyTorch.

    Args:
        images: `(B, 3, H, W)` floating point, any strides.
        size: Height and width of the resized square.
        patch: Height and width of a patch; divides `size`.
        fit: `"longest"` side to `size`, the rest padded with black; `"shortest"` side to `size`,
            then centre crop.
        mean: Per channel, subtracted from pixels in [0, 1].
        std: Per channel, divided by.
        value_range: What black and white are in `images`.
        antialias: `False` reads four pixels per axis whatever the scale.
        match: Whose rounding.
        clamp: Cut the overshoot of a resize back to [0, 1]; what needs no resize is left alone.
        cut: Cut pixels outside `value_range` first, as a decoder's output needs.
        crop: How half of an odd number of pixels is rounded: `"round"` as torchvision and
            open_clip, `"floor"` as transformers.
        dtype: Of the patches; the images' own by default.

    Returns:
        `(B, (size / patch)**2, 3 * patch**2)`: patches row by row, each in the order of a flattened
        convolution weight (channel, y, x).

    Raises:
        TypeError: Images or `dtype` not floating point.
        ValueError: A wrong shape, size, range or option, or an image of more than 2**31 elements.
    """
    dtype = images.dtype if dtype is None else dtype
    low, high = map(float, value_range)
    _check(images, size, patch, mean, std, (low, high), dtype)
    _check_options(fit, match, antialias, crop)
    mean, std = [float(v) for v in mean], [float(v) for v in std]
    if not len(images):
        return images.reshape(0, (size // patch) ** 2, 3 * patch**2).to(dtype)
    options = (size, patch, fit, mean, std, low, high, antialias, match, clamp, cut, crop, dtype)
    if not runs_triton(images):
        return resize_patchify_ref(images, *options)
    keep = images.requires_grad and torch.is_grad_enabled()
    return _op(images, *options, keep)[0]


def resize_patchify_ref(
    images: Tensor,
    size: int,
    patch: int,
    fit: str,
    mean: Sequence[float],
    std: Sequence[float],
    low: float,
    high: float,
    antialias: bool,
    match: str,
    clamp: bool,
    cut: bool,
    crop: str,
    dtype: torch.dtype,
) -> Tensor:
    """The same in plain PyTorch, in float32 or float64."""
    pixels = images.to(torch.promote_types(images.dtype, torch.float32))
    pixels = (pixels - low) / (high - low)
    rows, columns = _axes(images, size, fit, crop, antialias, match)
    if match == "pil":
        pixels = _pil(pixels, rows, columns)
    else:
        pixels = pixels.clamp(0, 1) if cut else pixels
        pixels = _fit(_interpolated(pixels, size, fit, antialias, clamp), size, crop)
    centre, spread = (pixels.new_tensor(v)[:, None, None] for v in (mean, std))
    pixels = ((pixels - centre) / spread).to(dtype)
    side = size // patch
    tiles = pixels.reshape(-1, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(len(images), side * side, 3 * patch * patch)


def _interpolated(pixels: Tensor, size: int, fit: str, antialias: bool, clamp: bool) -> Tensor:
    height, width = pixels.shape[-2:]
    wanted = target(height, width, size, fit)
    if wanted == (height, width):
        return pixels
    pixels = F.interpolate(pixels, wanted, mode="bicubic", antialias=antialias, align_corners=False)
    return pixels.clamp(0, 1) if clamp else pixels


def _fit(pixels: Tensor, size: int, crop: str) -> Tensor:
    for dim in (-2, -1):
        extra = pixels.shape[dim] - size
        if extra > 0:
            start = extra // 2 if crop == "floor" else round(extra / 2)
            pixels = pixels.narrow(dim, start, size)
    down, right = size - pixels.shape[-2], size - pixels.shape[-1]
    return F.pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))


def _pil(pixels: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Pillow's 8-bit resize in whole numbers of float64; gradients pass straight through."""
    down, across = rows.matrix(), columns.matrix()
    levels = (pixels.detach().float().clamp(0, 1) * 255).round().double()
    middle = ((levels @ across.T + FIXED_POINT / 2) / FIXED_POINT).floor().clamp(0, 255)
    final = ((down @ middle + FIXED_POINT / 2) / FIXED_POINT).floor()
    out = final.clamp(0, 255) / 255
    if pixels.requires_grad:
        free = torch.where((pixels >= 0) & (pixels <= 1), pixels, 0.0)
        smooth = (down / FIXED_POINT) @ free.double() @ (across / FIXED_POINT).T
        out = out + torch.where((final >= 0) & (final <= 255), smooth - smooth.detach(), 0.0)
    return out.to(pixels.dtype)


def _axes(
    images: Tensor, size: int, fit: str, crop: str, antialias: bool, match: str
) -> tuple[Axis, Axis]:
    height, width = images.shape[-2:]
    (down, across), device = target(height, width, size, fit), str(images.device)
    rows = axis(height, down, size, crop, antialias, match, device)
    return rows, axis(width, across, size, crop, antialias, match, device)


def _forward(
    images: Tensor,
    size: int,
    patch: int,
    fit: str,
    mean: Sequence[float],
    std: Sequence[float],
    low: float,
    high: float,
    antialias: bool,
    match: str,
    clamp: bool,
    cut: bool,
    crop: str,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Patches, and where the clamp lets gradients through (empty unless `keep` and it clamps)."""
    rows, columns = _axes(images, size, fit, crop, antialias, match)
    clamp = _clamps(images, size, fit, match, clamp)
    side = size // patch
    out = images.new_empty((len(images), side * side, 3 * patch * patch), dtype=dtype)
    kept = images.new_empty(out.shape if keep and clamp else (0,), dtype=torch.uint8)
    tiles = side * triton.cdiv(patch, OUTPUT_TILE)
    with on(images.device):
        resize_fwd_kernel[(len(images) * tiles * tiles,)](
            images,
            out,
            kept,
            rows.start,
            rows.weights,
            columns.start,
            columns.weights,
            *images.stride(),
            *images.shape[-2:],
            rows.taps,
            columns.taps,
            *rows.inside,
            *columns.inside,
            low,
            high - low,
            *mean,
            *std,
            SIDE=side,
            PATCH=patch,
            TILE=OUTPUT_TILE,
            K=16 if max(rows.span, columns.span) <= 16 else 32,
            PIL=match == "pil",
            EXACT=images.dtype in HALVES,
            CUT=cut or match == "pil",
            CLAMP=clamp,
            KEEP=keep and clamp,
            EDGES=_EDGES or match == "pil",
            num_warps=4,
            enable_fp_fusion=match != "pil",  # a fused multiply-add would skip one of its roundings
        )
    return out, kept


def _backward(
    grad: Tensor,
    kept: Tensor,
    images: Tensor,
    size: int,
    patch: int,
    fit: str,
    std: Sequence[float],
    low: float,
    high: float,
    antialias: bool,
    match: str,
    cut: bool,
    crop: str,
) -> Tensor:
    """The gradient of the images, contiguous, in their dtype."""
    rows, columns = _axes(images, size, fit, crop, antialias, match)
    grad = grad.contiguous()
    dx = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    height, width = images.shape[-2:]
    tiles = triton.cdiv(height, INPUT_TILE) * triton.cdiv(width, INPUT_TILE)
    units = FIXED_POINT**2 if match == "pil" else 1
    with on(images.device):
        resize_bwd_kernel[(len(images) * 3 * tiles,)](
            grad,
            kept,
            images,
            dx,
            rows.start,
            rows.weights,
            rows.first,
            rows.end,
            columns.start,
            columns.weights,
            columns.first,
            columns.end,
            *images.stride(),
            height,
            width,
            rows.taps,
            columns.taps,
            low,
            high - low,
            *(1 / (v * (high - low) * units) for v in std),
            SIDE=size // patch,
            PATCH=patch,
            TILE=INPUT_TILE,
            K=16 if max(rows.readers, columns.readers) <= 16 else 32,
            EXACT=grad.dtype in HALVES,
            CUT=cut or match == "pil",
            KEEP=kept.numel() > 0,
            EDGES=_EDGES or match == "pil",
            num_warps=4,
        )
    return dx


def _clamps(images: Tensor, size: int, fit: str, match: str, clamp: bool) -> bool:
    height, width = images.shape[-2:]
    return match == "pil" or (clamp and target(height, width, size, fit) != (height, width))


_op = torch.library.custom_op("steer::resize_patchify", _forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "steer::resize_patchify_backward", _backward, mutates_args=()
)


@_op.register_fake
def _forward_fake(
    images: Tensor, size: int, patch: int, fit: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    match, clamp, dtype, keep = rest[5], rest[6], rest[9], rest[10]
    side = size // patch
    out = images.new_empty((len(images), side * side, 3 * patch * patch), dtype=dtype)
    saves = keep and _clamps(images, size, fit, match, clamp)
    return out, images.new_empty(out.shape if saves else (0,), dtype=torch.uint8)


@_backward_op.register_fake
def _backward_fake(grad: Tensor, kept: Tensor, images: Tensor, *rest: Any) -> Tensor:
    return torch.empty(images.shape, dtype=images.dtype, device=images.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    images, size, patch, fit, _, std, low, high, antialias, match, _, cut, crop, _, keep = inputs
    if not keep:
        raise ValueError("steer::resize_patchify: pass keep=True where a gradient is needed")
    ctx.save_for_backward(output[1], images)
    ctx.options = (size, patch, fit, std, low, high, antialias, match, cut, crop)


def _gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    kept, images = ctx.saved_tensors
    return _backward_op(grad, kept, images, *ctx.options), *[None] * 14


_op.register_autograd(_gradient, setup_context=_setup)


def _check(
    images: Tensor,
    size: int,
    patch: int,
    mean: Sequence[float],
    std: Sequence[float],
    value_range: tuple[float, float],
    dtype: torch.dtype,
) -> None:
    check_floating(images=images)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images.shape={tuple(images.shape)}: pass (B, 3, height, width)")
    check_span("images", images)
    if patch < 1 or size < 1 or size % patch:
        raise ValueError(f"size={size}, patch={patch}: size must be a multiple of patch")
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise ValueError(f"mean={mean}, std={std}: pass three numbers each, std not zero")
    if not value_range[0] < value_range[1]:
        raise ValueError(f"value_range={value_range}: pass what black is, then what white is")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype}: pass a floating-point type")


def _check_options(fit: str, match: str, antialias: bool, crop: str) -> None:
    for name, value, known in (
        ("fit", fit, ("longest", "shortest")),
        ("match", match, ("torch", "pil")),
        ("crop", crop, ("round", "floor")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: one of {known}")
    if match == "pil" and not antialias:
        raise ValueError("antialias=False with match='pil': Pillow always antialiases")
