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
    jit,
    on,
    round_even,
    runs_triton,
    tl,
    triton,
)
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
    wanted = target(*pixels.shape[-2:], size, fit)
    if wanted == tuple(pixels.shape[-2:]):
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
    shape = tuple(images.shape[-2:])
    wanted, device = target(*shape, size, fit), str(images.device)
    rows, columns = (
        axis(source, length, size, crop, antialias, match, device)
        for source, length in zip(shape, wanted, strict=True)
    )
    return rows, columns


@jit
def _table(start_ptr, weight_ptr, outputs, sources, taps, used):
    """Weights of `outputs` (broadcast against `sources`): a window each, zero outside it."""
    tap = sources - tl.load(start_ptr + outputs, mask=used, other=0)
    inside = used & (tap >= 0) & (tap < taps)
    return tl.load(weight_ptr + outputs * taps + tap, mask=inside, other=0.0)


@jit
def _product(a, b, acc, EXACT: tl.constexpr):
    """`acc + a @ b` in float32 on tensor cores: two TF32 terms per operand, or one if `EXACT`.

    TF32 keeps 11 significant bits; the rest of an operand is a second term. `EXACT` says that `a`
    came from half precision, and has no rest.
    """
    b_head = (b.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    a_head = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    acc = tl.dot(a_head, b - b_head, acc, input_precision="tf32")
    if not EXACT:
        acc = tl.dot(a - a_head, b_head, acc, input_precision="tf32")
    return tl.dot(a_head, b_head, acc, input_precision="tf32")


@jit
def _level(coarse, middle, fine):
    """An 8-bit level from the three partial sums of a fixed-point product, not yet cut to 0..255.

    The weights are `16384 * coarse + 128 * middle + fine`, in units of 2**-22.
    """
    whole = coarse.to(tl.int32) * 16384 + middle.to(tl.int32) * 128 + fine.to(tl.int32)
    return ((whole + 2097152) >> 22).to(tl.float32)


@jit
def _pieces(weights):
    """Whole numbers as `16384 * a + 128 * b + c`, each exact in float16."""
    a = round_even(weights * (1 / 16384))
    rest = weights - a * 16384
    b = round_even(rest * (1 / 128))
    return a.to(tl.float16), b.to(tl.float16), (rest - b * 128).to(tl.float16)


@jit
def _between(x, low, high, EDGES: tl.constexpr):
    """Where a clamp lets gradients through: between its bounds, and at them if `EDGES`."""
    if EDGES:  # noqa: SIM108
        inside = (x >= low) & (x <= high)
    else:
        inside = (x > low) & (x < high)
    return inside


@jit
def _resize_fwd_kernel(
    x_ptr,  # images, any strides
    out_ptr,  # (B, patches, 3 * PATCH**2)
    keep_ptr,  # the same in uint8: whether the clamp lets a gradient through
    start_y_ptr,
    weight_y_ptr,
    start_x_ptr,
    weight_x_ptr,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    height,
    width,
    taps_y,
    taps_x,
    row_first,  # the outputs that are image, not padding
    row_end,
    column_first,
    column_end,
    low,
    scale,  # high - low
    mean_0,
    mean_1,
    mean_2,
    std_0,
    std_1,
    std_2,
    SIDE: tl.constexpr,  # patches per side
    PATCH: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,  # source pixels per step
    PIL: tl.constexpr,
    EXACT: tl.constexpr,
    CUT: tl.constexpr,
    CLAMP: tl.constexpr,
    KEEP: tl.constexpr,
    EDGES: tl.constexpr,  # whether gradients pass at the very bounds of a clamp
):
    PARTS: tl.constexpr = (PATCH + TILE - 1) // TILE
    TILES: tl.constexpr = SIDE * PARTS
    pid = tl.program_id(0)
    image = (pid // (TILES * TILES)).to(tl.int64)
    tile_y = pid // TILES % TILES
    tile_x = pid % TILES
    py = tile_y % PARTS * TILE + tl.arange(0, TILE)
    px = tile_x % PARTS * TILE + tl.arange(0, TILE)
    rows = tile_y // PARTS * PATCH + py
    columns = tile_x // PARTS * PATCH + px
    first_row = tile_y // PARTS * PATCH + tile_y % PARTS * TILE
    first_column = tile_x // PARTS * PATCH + tile_x % PARTS * TILE
    last_row = tl.minimum(first_row + TILE, (tile_y // PARTS + 1) * PATCH) - 1
    last_column = tl.minimum(first_column + TILE, (tile_x // PARTS + 1) * PATCH) - 1
    y_begin = tl.load(start_y_ptr + first_row)
    y_end = tl.minimum(tl.load(start_y_ptr + last_row) + taps_y, height)
    x_begin = tl.load(start_x_ptr + first_column)
    x_end = tl.minimum(tl.load(start_x_ptr + last_column) + taps_x, width)
    used_y = py < PATCH
    used_x = px < PATCH
    image_y = (rows >= row_first) & (rows < row_end)
    image_x = (columns >= column_first) & (columns < column_end)
    black = tl.where(image_y[:, None] & image_x[None, :], low, 0.0)
    out_base = image * (SIDE * SIDE * 3 * PATCH * PATCH)
    out_base += (tile_y // PARTS * SIDE + tile_x // PARTS) * (3 * PATCH * PATCH)
    for channel in range(3):
        mean = tl.where(channel == 0, mean_0, tl.where(channel == 1, mean_1, mean_2))
        std = tl.where(channel == 0, std_0, tl.where(channel == 1, std_1, std_2))
        acc = tl.zeros([TILE, TILE], tl.float32)
        acc_b = tl.zeros([TILE, TILE], tl.float32)
        acc_c = tl.zeros([TILE, TILE], tl.float32)
        for y0 in range(y_begin, y_end, K):
            ys = y0 + tl.arange(0, K)
            half = tl.zeros([K, TILE], tl.float32)
            half_b = tl.zeros([K, TILE], tl.float32)
            half_c = tl.zeros([K, TILE], tl.float32)
            for x0 in range(x_begin, x_end, K):
                xs = x0 + tl.arange(0, K)
                offsets = ys[:, None] * stride_y + xs[None, :] * stride_x
                inside = (ys < height)[:, None] & (xs < width)[None, :]
                base = x_ptr + image * stride_b + channel * stride_c
                x = tl.load(base + offsets, mask=inside, other=0.0).to(tl.float32)
                weights = _table(
                    start_x_ptr,
                    weight_x_ptr,
                    columns[None, :],
                    xs[:, None],
                    taps_x,
                    used_x[None, :],
                )
                if CUT:
                    x = tl.where(x < low, low, tl.where(x > low + scale, low + scale, x))
                if PIL:
                    x = round_even(tl.div_rn(x - low, scale) * 255.0).to(tl.float16)
                    a, b, c = _pieces(weights)
                    half = tl.dot(x, a, half)
                    half_b = tl.dot(x, b, half_b)
                    half_c = tl.dot(x, c, half_c)
                else:
                    half = _product(x, weights, half, EXACT)
            weights = _table(
                start_y_ptr, weight_y_ptr, rows[:, None], ys[None, :], taps_y, used_y[:, None]
            )
            if PIL:
                level = _level(half, half_b, half_c)
                level = tl.minimum(tl.maximum(level, 0.0), 255.0).to(tl.float16)
                a, b, c = _pieces(weights)
                acc = tl.dot(a, level, acc)
                acc_b = tl.dot(b, level, acc_b)
                acc_c = tl.dot(c, level, acc_c)
            else:
                acc = _product(weights, half, acc, False)
        if PIL:  # noqa: SIM108
            value = tl.div_rn(_level(acc, acc_b, acc_c), 255.0)
        else:
            value = (acc - black) / scale
        at = py[:, None] * PATCH + px[None, :] + channel * (PATCH * PATCH)
        used = used_y[:, None] & used_x[None, :]
        if CLAMP:
            if KEEP:
                keep = _between(value, 0.0, 1.0, EDGES)
                tl.store(keep_ptr + out_base + at, keep.to(tl.uint8), mask=used)
            value = tl.where(value < 0.0, 0.0, tl.where(value > 1.0, 1.0, value))
        value = (value - mean) / std
        tl.store(out_ptr + out_base + at, value.to(out_ptr.dtype.element_ty), mask=used)


@jit
def _resize_bwd_kernel(
    grad_ptr,  # (B, patches, 3 * PATCH**2)
    keep_ptr,
    x_ptr,  # images, only read if CUT
    dx_ptr,  # (B, 3, height, width), contiguous
    start_y_ptr,
    weight_y_ptr,
    first_y_ptr,  # per tile of source rows, the outputs that read it
    end_y_ptr,
    start_x_ptr,
    weight_x_ptr,
    first_x_ptr,
    end_x_ptr,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    height,
    width,
    taps_y,
    taps_x,
    low,
    scale,
    factor_0,  # 1 / (std * scale * units of the weights)
    factor_1,
    factor_2,
    SIDE: tl.constexpr,
    PATCH: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,  # outputs per step
    EXACT: tl.constexpr,
    CUT: tl.constexpr,
    KEEP: tl.constexpr,
    EDGES: tl.constexpr,  # whether gradients pass at the very bounds of a clamp
):
    tiles_y = (height + TILE - 1) // TILE
    tiles_x = (width + TILE - 1) // TILE
    pid = tl.program_id(0)
    plane = pid // (tiles_y * tiles_x)
    image = (plane // 3).to(tl.int64)
    channel = plane % 3
    tile_y = pid // tiles_x % tiles_y
    tile_x = pid % tiles_x
    ys = tile_y * TILE + tl.arange(0, TILE)
    xs = tile_x * TILE + tl.arange(0, TILE)
    y_begin = tl.load(first_y_ptr + tile_y)
    y_end = tl.load(end_y_ptr + tile_y)
    x_begin = tl.load(first_x_ptr + tile_x)
    x_end = tl.load(end_x_ptr + tile_x)
    base = image * (SIDE * SIDE * 3 * PATCH * PATCH) + channel * (PATCH * PATCH)
    acc = tl.zeros([TILE, TILE], tl.float32)
    for row in range(y_begin, y_end, K):
        rows = row + tl.arange(0, K)
        half = tl.zeros([K, TILE], tl.float32)
        for column in range(x_begin, x_end, K):
            columns = column + tl.arange(0, K)
            used = (rows < y_end)[:, None] & (columns < x_end)[None, :]
            at = (rows // PATCH * SIDE)[:, None] + (columns // PATCH)[None, :]
            at = at * (3 * PATCH * PATCH) + (rows % PATCH * PATCH)[:, None]
            at += (columns % PATCH)[None, :]
            grad = tl.load(grad_ptr + base + at, mask=used, other=0.0).to(tl.float32)
            if KEEP:
                keep = tl.load(keep_ptr + base + at, mask=used, other=0)
                grad = tl.where(keep != 0, grad, 0.0)
            weights = _table(
                start_x_ptr,
                weight_x_ptr,
                columns[:, None],
                xs[None, :],
                taps_x,
                (columns < x_end)[:, None],
            )
            half = _product(grad, weights, half, EXACT)
        weights = _table(
            start_y_ptr, weight_y_ptr, rows[None, :], ys[:, None], taps_y, (rows < y_end)[None, :]
        )
        acc = _product(weights, half, acc, False)
    factor = tl.where(channel == 0, factor_0, tl.where(channel == 1, factor_1, factor_2))
    inside = (ys < height)[:, None] & (xs < width)[None, :]
    dx = acc * factor
    if CUT:
        offsets = ys[:, None] * stride_y + xs[None, :] * stride_x + channel * stride_c
        x = tl.load(x_ptr + image * stride_b + offsets, mask=inside, other=0.0).to(tl.float32)
        dx = tl.where(_between(x, low, low + scale, EDGES), dx, 0.0)
    to = (image * 3 + channel) * height * width + ys[:, None] * width + xs[None, :]
    tl.store(dx_ptr + to, dx.to(dx_ptr.dtype.element_ty), mask=inside)


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
        _resize_fwd_kernel[(len(images) * tiles * tiles,)](
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
        _resize_bwd_kernel[(len(images) * 3 * tiles,)](
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
    shape = tuple(images.shape[-2:])
    return match == "pil" or (clamp and target(*shape, size, fit) != shape)


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
