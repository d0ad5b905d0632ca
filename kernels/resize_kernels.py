"""The two kernels of `resize_patchify`: tiles of patches from images, and back."""

from __future__ import annotations

from steer_kernels.common import jit, round_even, tl


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
def resize_fwd_kernel(
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
def resize_bwd_kernel(
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
