"""CLIP's head: from the class tokens of a batch to its scores against cached prompts.

`features = LayerNorm(rows) @ projection`, `score = scale * <features / |features|, text>` (Radford
et al., 2021, arXiv:2103.00020), in two launches instead of eight. Everything is float32 from the
rows on: eager half-precision models round the features, and with them the score, to 8 or 11 bits.

Every sum runs in one fixed order that does not depend on the batch, without atomics: a row has the
same score, bit for bit, alone and in any batch. Weights are frozen: gradients for the rows only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from steer_kernels.common import (
    FLOATS,
    check_floating,
    check_frozen,
    check_same_device,
    dot,
    jit,
    on,
    runs_triton,
    tl,
)
from steer_kernels.norm import MAX_WIDTH, as_rows, launch_norm_backward
from torch import Tensor


SMALLEST_NORM = 1e-12
"""Features shorter than this are divided by it, as in `torch.nn.functional.normalize`."""

ROWS, COLUMNS, INNER = 16, 32, 32
"""Block of a product: rows of the batch, output columns, summed elements at a time."""
STATS = 128
"""Elements of a row at a time for its mean and variance."""


def clip_head_ref(
    rows: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    projection: Tensor,
    texts: Tensor,
    scale: float,
    paired: bool = False,
) -> Tensor:
    """`clip_head` in plain PyTorch, in float32, or in float64 for float64 rows."""
    work = torch.promote_types(rows.dtype, torch.float32)
    hidden = F.layer_norm(
        rows.to(work), (rows.shape[1],), ln_weight.to(work), ln_bias.to(work), eps
    )
    features = F.normalize(hidden @ projection.to(work), dim=-1, eps=SMALLEST_NORM)
    texts = texts.to(work)
    return scale * ((features * texts).sum(-1) if paired else features @ texts.T)


@jit
def row_stats(x_ptr, valid, depth, eps, BM: tl.constexpr, STATS: tl.constexpr):
    """Mean and `1 / std` of BM rows of `depth` elements, in two passes."""
    inner = tl.arange(0, STATS)
    total = tl.zeros((BM,), tl.float32)
    for k in range(0, depth, STATS):
        inside = valid[:, None] & (inner < depth - k)[None, :]
        x = tl.load(x_ptr[:, None] + k + inner[None, :], mask=inside, other=0.0)
        total += tl.sum(x.to(tl.float32), 1)
    mean = total / depth
    square = tl.zeros((BM,), tl.float32)
    for k in range(0, depth, STATS):
        inside = valid[:, None] & (inner < depth - k)[None, :]
        x = tl.load(x_ptr[:, None] + k + inner[None, :], mask=inside, other=0.0)
        x = tl.where(inside, x.to(tl.float32) - mean[:, None], 0.0)
        square += tl.sum(x * x, 1)
    return mean, 1.0 / tl.sqrt_rn(square / depth + eps)


@jit
def project_kernel(
    x_ptr,
    ln_weight_ptr,
    ln_bias_ptr,
    matrix_ptr,
    out_ptr,
    batch,
    depth,
    width,
    x_stride,
    matrix_k,
    matrix_n,
    eps,
    LN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STATS: tl.constexpr,
):
    """`out = x @ matrix` in float32, one `(BM, BN)` tile per program; with LN, of LayerNorm(x)."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    in_row, in_column = row < batch, column < width
    x_ptr += row * x_stride
    mean = tl.zeros((BM,), tl.float32)
    rstd = mean
    if LN:
        mean, rstd = row_stats(x_ptr, in_row, depth, eps, BM, STATS)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, depth, BK):
        inner = k + tl.arange(0, BK)
        inside = in_row[:, None] & (inner < depth)[None, :]
        x = tl.load(x_ptr[:, None] + inner[None, :], mask=inside, other=0.0).to(tl.float32)
        if LN:
            weight = tl.load(ln_weight_ptr + inner, mask=inner < depth, other=0.0).to(tl.float32)
            bias = tl.load(ln_bias_ptr + inner, mask=inner < depth, other=0.0).to(tl.float32)
            x = (x - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :]
        block = matrix_ptr + inner[:, None] * matrix_k + column[None, :] * matrix_n
        m = tl.load(block, mask=(inner < depth)[:, None] & in_column[None, :], other=0.0)
        acc = dot(x, m.to(tl.float32), acc, False)
    out = out_ptr + row[:, None] * width + column[None, :]
    tl.store(out, acc, mask=in_row[:, None] & in_column[None, :])


@jit
def score_kernel(
    features_ptr,
    texts_ptr,
    scores_ptr,
    norms_ptr,
    batch,
    width,
    prompts,
    texts_stride,
    scale,
    PAIRED: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Scores of BM rows against BM prompts, or with PAIRED each against its own; and the norms."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    prompt = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    in_row, in_prompt = row < batch, prompt < prompts
    square = tl.zeros((BM,), tl.float32)
    own = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BM), tl.float32)
    for e in range(0, width, BK):
        inner = e + tl.arange(0, BK)
        inside = in_row[:, None] & (inner < width)[None, :]
        f = tl.load(features_ptr + row[:, None] * width + inner[None, :], mask=inside, other=0.0)
        square += tl.sum(f * f, 1)
        if PAIRED:
            t = tl.load(
                texts_ptr + row[:, None] * texts_stride + inner[None, :], mask=inside, other=0.0
            )
            own += tl.sum(f * t.to(tl.float32), 1)
        else:
            block = texts_ptr + prompt[None, :] * texts_stride + inner[:, None]
            t = tl.load(block, mask=(inner < width)[:, None] & in_prompt[None, :], other=0.0)
            acc = dot(f, t.to(tl.float32), acc, False)
    norm = tl.maximum(tl.sqrt_rn(square), 1e-12)
    factor = scale / norm
    if PAIRED:
        tl.store(scores_ptr + row, own * factor, mask=in_row)
    else:
        valid = in_row[:, None] & in_prompt[None, :]
        tl.store(
            scores_ptr + row[:, None] * prompts + prompt[None, :], acc * factor[:, None], mask=valid
        )
    if tl.program_id(1) == 0:
        tl.store(norms_ptr + row, norm, mask=in_row)


@jit
def features_grad_kernel(
    grad_ptr,
    scores_ptr,
    features_ptr,
    norms_ptr,
    texts_ptr,
    out_ptr,
    batch,
    width,
    prompts,
    texts_stride,
    scale,
    PAIRED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Gradient of the features, `(scale * grad @ texts - u * sum(grad * scores)) / |features|`."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    in_row, in_column = row < batch, column < width
    inside = in_row[:, None] & in_column[None, :]
    radial = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BN), tl.float32)
    if PAIRED:
        grad = tl.load(grad_ptr + row, mask=in_row, other=0.0)
        radial = grad * tl.load(scores_ptr + row, mask=in_row, other=0.0)
        block = texts_ptr + row[:, None] * texts_stride + column[None, :]
        acc = grad[:, None] * tl.load(block, mask=inside, other=0.0).to(tl.float32)
    else:
        for p in range(0, prompts, BM):
            prompt = p + tl.arange(0, BM)
            valid = in_row[:, None] & (prompt < prompts)[None, :]
            index = row[:, None] * prompts + prompt[None, :]
            grad = tl.load(grad_ptr + index, mask=valid, other=0.0)
            radial += tl.sum(grad * tl.load(scores_ptr + index, mask=valid, other=0.0), 1)
            block = texts_ptr + prompt.to(tl.int64)[:, None] * texts_stride + column[None, :]
            t = tl.load(block, mask=(prompt < prompts)[:, None] & in_column[None, :], other=0.0)
            acc = dot(grad, t.to(tl.float32), acc, False)
    norm = tl.load(norms_ptr + row, mask=in_row, other=1.0)
    f = tl.load(features_ptr + row[:, None] * width + column[None, :], mask=inside, other=0.0)
    unit = f / norm[:, None]
    out = (scale * acc - unit * radial[:, None]) / norm[:, None]
    tl.store(out_ptr + row[:, None] * width + column[None, :], out, mask=inside)


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _project(
    x: Tensor, ln: tuple[Tensor, Tensor] | None, eps: float, matrix: Tensor, out: Tensor
) -> None:
    """`out = LayerNorm(x) @ matrix`, without `ln` of `x` itself; any strides of matrix."""
    (b, k), n = x.shape, matrix.shape[1]
    weight, bias = ln or (x, x)
    with on(x.device):
        project_kernel[(_blocks(b, ROWS), _blocks(n, COLUMNS))](
            x,
            weight.contiguous(),
            bias.contiguous(),
            matrix,
            out,
            b,
            k,
            n,
            x.stride(0),
            matrix.stride(0),
            matrix.stride(1),
            eps,
            LN=ln is not None,
            BM=ROWS,
            BN=COLUMNS,
            BK=INNER,
            STATS=STATS,
            num_stages=3,
        )


@torch.library.custom_op("steer::clip_head", mutates_args=())
def _clip_head(
    rows: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    projection: Tensor,
    texts: Tensor,
    scale: float,
    paired: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, texts = as_rows(rows), as_rows(texts)
    (b, e), p = (len(rows), projection.shape[1]), len(texts)
    scores, features, norms = _allocate(rows, projection, texts, paired)
    if not scores.numel():
        return scores, features.zero_(), norms.fill_(1.0)
    _project(rows, (ln_weight, ln_bias), eps, projection, features)
    with on(rows.device):
        score_kernel[(_blocks(b, ROWS), 1 if paired else _blocks(p, ROWS))](
            features,
            texts,
            scores,
            norms,
            b,
            e,
            p,
            texts.stride(0),
            scale,
            PAIRED=paired,
            BM=ROWS,
            BK=INNER,
        )
    return scores, features, norms


@torch.library.custom_op("steer::clip_head_backward", mutates_args=())
def _clip_head_backward(
    grad: Tensor,
    scores: Tensor,
    features: Tensor,
    norms: Tensor,
    rows: Tensor,
    ln_weight: Tensor,
    eps: float,
    projection: Tensor,
    texts: Tensor,
    scale: float,
    paired: bool,
) -> Tensor:
    texts = as_rows(texts)
    if not scores.numel():
        return torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
    d_features = torch.empty(features.shape, dtype=torch.float32, device=rows.device)
    (b, e), p = features.shape, len(texts)
    with on(rows.device):
        features_grad_kernel[(_blocks(b, ROWS), _blocks(e, INNER))](
            grad.contiguous(),
            scores,
            features,
            norms,
            texts,
            d_features,
            b,
            e,
            p,
            texts.stride(0),
            scale,
            PAIRED=paired,
            BM=ROWS,
            BN=INNER,
        )
    d_hidden = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    _project(d_features, None, eps, projection.T, d_hidden)
    return launch_norm_backward(d_hidden, None, rows, ln_weight, eps)


def _allocate(
    rows: Tensor, projection: Tensor, texts: Tensor, paired: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (len(rows),) if paired else (len(rows), len(texts))
    return (
        rows.new_empty(shape, dtype=torch.float32),
        rows.new_empty((len(rows), projection.shape[1]), dtype=torch.float32),
        rows.new_empty((len(rows),), dtype=torch.float32),
    )


@_clip_head.register_fake
def _(
    rows: Tensor, w: Tensor, b: Tensor, eps: float, projection: Tensor, texts: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _allocate(rows, projection, texts, rest[-1])


@_clip_head_backward.register_fake
def _(grad: Tensor, s: Tensor, f: Tensor, n: Tensor, rows: Tensor, *rest: Any) -> Tensor:
    return rows.new_empty(rows.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, ln_weight, _, ctx.eps, projection, texts, ctx.scale, ctx.paired = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, rows, ln_weight, projection, texts)


def _grad(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    *output, rows, ln_weight, projection, texts = ctx.saved_tensors
    d_rows = _clip_head_backward(
        grad, *output, rows, ln_weight, ctx.eps, projection, texts, ctx.scale, ctx.paired
    )
    return (d_rows, *(None,) * 7)


_clip_head.register_autograd(_grad, setup_context=_setup)


def clip_head(
    rows: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    projection: Tensor,
    texts: Tensor,
    scale: float,
    paired: bool = False,
) -> Tensor:
    """Scores of class tokens against prompts; differentiable in `rows`.

    Args:
        rows: `(B, D)`, any strides: `tokens[:, 0]` is read in place.
        ln_weight: `(D,)`, frozen.
        ln_bias: `(D,)`, frozen.
        eps: Added to the variance.
        projection: `(D, E)`, any strides, frozen.
        texts: `(P, E)` unit features of the prompts; `(B, E)` with `paired`.
        scale: Factor of the cosine, `exp(logit_scale)`.
        paired: Score row i against text i only.

    Returns:
        float32 `(B, P)`, or `(B,)` with `paired`; float64 for float64 rows.

    Raises:
        TypeError: Not floating point, or a scale that is not a number.
        ValueError: Shapes that do not fit, several devices, or weights that want a gradient.
    """
    _check(rows, ln_weight, ln_bias, projection, texts, scale, paired)
    if not (runs_triton(rows, FLOATS) and rows.shape[1] <= MAX_WIDTH):
        return clip_head_ref(rows, ln_weight, ln_bias, eps, projection, texts, scale, paired)
    return _clip_head(rows, ln_weight, ln_bias, eps, projection, texts, float(scale), paired)[0]


def _check(
    rows: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    projection: Tensor,
    texts: Tensor,
    scale: float,
    paired: bool,
) -> None:
    weights = {"ln_weight": ln_weight, "ln_bias": ln_bias, "projection": projection, "texts": texts}
    check_floating(rows=rows, **weights)
    check_same_device(rows=rows, **weights)
    check_frozen(**weights)
    if rows.dtype not in (*FLOATS, torch.float64):
        raise TypeError(f"rows.dtype={rows.dtype}: pass float16, bfloat16 or float32")
    if not isinstance(scale, (int, float)):
        raise TypeError(f"scale={scale!r}: pass a number, exp(logit_scale) read once")
    if rows.ndim != 2 or projection.ndim != 2 or 0 in projection.shape:
        raise ValueError(
            f"rows.shape={tuple(rows.shape)}, projection.shape={tuple(projection.shape)}: "
            "pass (B, D) and (D, E)"
        )
    width, features = projection.shape
    for name, tensor, shape in (
        ("rows", rows, (len(rows), width)),
        ("ln_weight", ln_weight, (width,)),
        ("ln_bias", ln_bias, (width,)),
        ("texts", texts, (len(rows if paired or not texts.ndim else texts), features)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}.shape={tuple(tensor.shape)}: pass {shape}")
