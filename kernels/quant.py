"""LayerNorm and GELU that leave FP8 rows behind: E4M3 values and one scale per row.

What `fp8.quantise_ref` does, inside the kernel that produces the row: no calibration data, and
nothing is read twice. Forward only.

Triton's interpreter does not carry a mantissa that rounds up into the exponent (values just below a
power of two come out halved) and turns NaN into a number, so there the kernels round in float32
first (`ROUND`), after which the conversion is exact.
"""

from __future__ import annotations

import torch
from steer_kernels.common import (
    FLOATS,
    INTERPRET,
    check_floating,
    jit,
    on,
    runs_triton,
    tl,
)
from steer_kernels.fp8 import (
    E4M3,
    check_fp8,
    dequantise,
    fp8_available,
    linear_fp8,
    linear_fp8_ref,
    quantise_ref,
    quantise_weight,
)
from steer_kernels.linear_gelu import Kind, check_kind, gelu_ref, gelu_value
from steer_kernels.norm import (
    MAX_WIDTH,
    affine,
    as_rows,
    check_norm,
    load_sum,
    norm_ref,
    row_launch,
    standardise,
)
from torch import Tensor


__all__ = [
    "dequantise",
    "fp8_available",
    "gelu_quant",
    "gelu_quant_ref",
    "linear_fp8",
    "linear_fp8_ref",
    "norm_quant",
    "norm_quant_ref",
    "quantise_ref",
    "quantise_weight",
]


def norm_quant_ref(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_quant` in plain PyTorch; what is quantised is not rounded to x's type before."""
    summed = x if residual is None else x + residual
    wide = summed.to(torch.promote_types(summed.dtype, torch.float32))
    return *quantise_ref(norm_ref(wide, weight, bias, eps)[0]), summed


def gelu_quant_ref(x: Tensor, kind: Kind = "erf") -> tuple[Tensor, Tensor]:
    """`gelu_quant` in plain PyTorch; what is quantised is not rounded to x's type before."""
    return quantise_ref(gelu_ref(x.to(torch.promote_types(x.dtype, torch.float32)), kind))


@jit
def to_e4m3(x, ROUND: tl.constexpr):
    """A float32 block as E4M3, to nearest even; |x| is at most 448, up to rounding."""
    if ROUND:
        exponent = (x.to(tl.int32, bitcast=True) >> 23) & 0xFF
        exponent = tl.maximum(exponent, 121) + 20  # 2**-6 is the smallest normal; 3 bits follow
        shift = ((exponent << 23) | 0x400000).to(tl.float32, bitcast=True)
        x = (x + shift) - shift
        bits = x.to(tl.int32, bitcast=True)
        x = tl.where(x == x, bits, 0x7FF00000).to(tl.float32, bitcast=True)  # NaN, cut to 3 bits
    return x.to(tl.float8e4nv)


@jit
def store_quantised(a, b, q_ptr, scale_ptr, row, head, tail, in_head, in_tail, ROUND: tl.constexpr):
    """Stores both parts of a float32 row as E4M3, and its scale. Outside the row they are 0."""
    amax = tl.maximum(tl.max(tl.abs(a), 0), tl.max(tl.abs(b), 0))
    scale = tl.div_rn(tl.maximum(amax, 1e-12), 448.0)
    inverse = tl.div_rn(1.0, scale)
    tl.store(scale_ptr + row, scale)
    tl.store(q_ptr + head, to_e4m3(a * inverse, ROUND), mask=in_head)
    tl.store(q_ptr + tail, to_e4m3(b * inverse, ROUND), mask=in_tail)


@jit
def norm_quant_kernel(
    x_ptr,
    residual_ptr,
    sum_ptr,
    weight_ptr,
    bias_ptr,
    q_ptr,
    scale_ptr,
    x_stride,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROUND: tl.constexpr,
):
    """One row per program: sum, LayerNorm, scale, E4M3; the row stays in registers."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    in_head, in_tail = head < WIDTH, tail < WIDTH
    x_ptr += row * x_stride
    residual_ptr += row * residual_stride
    sum_ptr += row * WIDTH
    q_ptr += row * WIDTH
    a = load_sum(x_ptr, residual_ptr, sum_ptr, head, in_head, RESIDUAL)
    b = load_sum(x_ptr, residual_ptr, sum_ptr, tail, in_tail, RESIDUAL)
    a, b, _ = standardise(a, b, in_head, in_tail, eps, WIDTH)
    a = affine(a, weight_ptr, bias_ptr, head, in_head)
    b = affine(b, weight_ptr, bias_ptr, tail, in_tail)
    store_quantised(a, b, q_ptr, scale_ptr, row, head, tail, in_head, in_tail, ROUND)


@jit
def gelu_quant_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    x_stride,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    QUICK: tl.constexpr,
    ROUND: tl.constexpr,
):
    """One row per program: GELU, scale, E4M3; the row stays in registers."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    in_head, in_tail = head < WIDTH, tail < WIDTH
    x_ptr += row * x_stride
    q_ptr += row * WIDTH
    a = gelu_value(tl.load(x_ptr + head, mask=in_head, other=0.0).to(tl.float32), QUICK)
    b = gelu_value(tl.load(x_ptr + tail, mask=in_tail, other=0.0).to(tl.float32), QUICK)
    store_quantised(a, b, q_ptr, scale_ptr, row, head, tail, in_head, in_tail, ROUND)


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the quantised rows of `x` (rows, width)."""
    q = torch.empty(x.shape, dtype=E4M3, device=x.device)
    return q, torch.empty(x.shape[:1], dtype=torch.float32, device=x.device)


def _launch_norm_quant(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, stream = as_rows(x), x if residual is None else as_rows(residual)
    q, scale = _quantised(x)
    summed = x if residual is None else torch.empty(x.shape, dtype=stream.dtype, device=x.device)
    if x.numel():
        with on(x.device):
            norm_quant_kernel[(len(x),)](
                x,
                stream,
                summed,
                weight.contiguous(),
                bias.contiguous(),
                q,
                scale,
                x.stride(0),
                stream.stride(0),
                eps,
                RESIDUAL=residual is not None,
                ROUND=INTERPRET,
                **row_launch(x.shape[-1]),
            )
    return q, scale, summed


@torch.library.custom_op("steer::norm_quant", mutates_args=())
def _norm_quant(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _launch_norm_quant(x, None, weight, bias, eps)[:2]


@torch.library.custom_op("steer::add_norm_quant", mutates_args=())
def _add_norm_quant(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _launch_norm_quant(x, residual, weight, bias, eps)


@torch.library.custom_op("steer::gelu_quant", mutates_args=())
def _gelu_quant(x: Tensor, quick: bool) -> tuple[Tensor, Tensor]:
    x = as_rows(x)
    q, scale = _quantised(x)
    if x.numel():
        with on(x.device):
            gelu_quant_kernel[(len(x),)](
                x,
                q,
                scale,
                x.stride(0),
                QUICK=quick,
                ROUND=INTERPRET,
                **row_launch(x.shape[-1]),
            )
    return q, scale


@_norm_quant.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty(x.shape[:1], dtype=torch.float32)


@_add_norm_quant.register_fake
def _(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    q, scale = x.new_empty(x.shape, dtype=E4M3), x.new_empty(x.shape[:1], dtype=torch.float32)
    return q, scale, residual.new_empty(x.shape)


@_gelu_quant.register_fake
def _(x: Tensor, quick: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty(x.shape[:1], dtype=torch.float32)


def _check_forward_only(name: str, x: Tensor, residual: Tensor | None = None) -> None:
    wanted = x.requires_grad or (residual is not None and residual.requires_grad)
    if wanted and torch.is_grad_enabled():
        raise ValueError(
            f"requires_grad=True: {name} has no gradient; call it under torch.no_grad(), or use "
            "the bfloat16 ops where a gradient is needed"
        )


def _check_rows(name: str, x: Tensor, residual: Tensor | None = None) -> None:
    check_floating(x=x)
    if x.dtype not in (*FLOATS, torch.float64):
        raise TypeError(f"x.dtype={x.dtype}: pass float16, bfloat16 or float32")
    if x.ndim < 1 or not x.shape[-1]:
        raise ValueError(f"x.shape={tuple(x.shape)}: pass (..., width), width at least 1")
    check_fp8(x.device)
    _check_forward_only(name, x, residual)


def norm_quant(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm`, its result quantised row by row; forward only.

    Args:
        x: `(..., width)`, any strides.
        weight: `(width,)`.
        bias: `(width,)`.
        eps: Added to the variance.
        residual: `(..., width)` of x's type, or float32.

    Returns:
        E4M3 `(..., width)`, float32 scales `(...)`, and the sum as `norm` returns it. What is
        not finite dequantises to NaN.

    Raises:
        TypeError: Not floating point, or a residual of another type.
        ValueError: Shapes that do not fit, several devices, no FP8 there, or a gradient wanted.
    """
    check_norm(x, weight, bias, residual)
    _check_rows("norm_quant", x, residual)
    if not (runs_triton(x, FLOATS) and x.shape[-1] <= MAX_WIDTH):
        return norm_quant_ref(x, weight, bias, eps, residual)
    if residual is None:
        q, scale = _norm_quant(as_rows(x), weight, bias, eps)
        return q.view(x.shape), scale.view(x.shape[:-1]), x
    q, scale, summed = _add_norm_quant(as_rows(x), as_rows(residual), weight, bias, eps)
    return q.view(x.shape), scale.view(x.shape[:-1]), summed.view(x.shape)


def gelu_quant(x: Tensor, kind: Kind = "erf") -> tuple[Tensor, Tensor]:
    """GELU, its result quantised row by row; forward only.

    Args:
        x: `(..., width)`, any strides.
        kind: "erf" or "quick".

    Returns:
        E4M3 `(..., width)` and float32 scales `(...)`.

    Raises:
        TypeError: Not floating point.
        ValueError: Unknown kind, a device without FP8, or a gradient wanted.
    """
    check_kind(kind)
    _check_rows("gelu_quant", x)
    if not (runs_triton(x, FLOATS) and x.shape[-1] <= MAX_WIDTH):
        return gelu_quant_ref(x, kind)
    q, scale = _gelu_quant(as_rows(x), kind == "quick")
    return q.view(x.shape), scale.view(x.shape[:-1])
