"""Residual addition and LayerNorm in one pass, for frozen weights: gradients for the input only.

`summed = x + residual`, `normalised = (summed - mean) / sqrt(var + eps) * weight + bias` over the
last axis (Ba et al., 2016, arXiv:1607.06450). One program holds one row in registers, in two parts
whose lengths are powers of two (1280 = 1024 + 256), so that few lanes idle. The backward pass
recomputes mean and variance from the stored sum, which it reads anyway.
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
    jit,
    on,
    runs_triton,
    tl,
)
from torch import Tensor


MAX_WIDTH = 16384
"""Wider rows do not fit the registers; they run the reference."""


def norm_ref(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`norm` in plain PyTorch; statistics in float32, or in float64 for float64 inputs."""
    summed = x if residual is None else x + residual
    work = torch.promote_types(summed.dtype, torch.float32)
    out = F.layer_norm(summed.to(work), (x.shape[-1],), weight.to(work), bias.to(work), eps)
    return out.to(x.dtype), summed


@jit
def load_sum(x_ptr, residual_ptr, sum_ptr, offsets, valid, RESIDUAL: tl.constexpr):
    """A part of a row of x, plus the residual (stored, rounded to its type), in float32."""
    value = tl.load(x_ptr + offsets, mask=valid, other=0.0)
    if RESIDUAL:
        stream = tl.load(residual_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + stream).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offsets, value, mask=valid)
    return value.to(tl.float32)


@jit
def standardise(a, b, valid_a, valid_b, eps, WIDTH: tl.constexpr):
    """Both parts of a row with mean 0 and variance 1 (0 outside the row), and `1 / std`."""
    mean = (tl.sum(a, 0) + tl.sum(b, 0)) / WIDTH
    a = tl.where(valid_a, a - mean, 0.0)
    b = tl.where(valid_b, b - mean, 0.0)
    rstd = 1.0 / tl.sqrt_rn((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / WIDTH + eps)
    return a * rstd, b * rstd, rstd


@jit
def affine(x, weight_ptr, bias_ptr, offsets, valid):
    """`x * weight + bias` for a part of a row, in float32."""
    weight = tl.load(weight_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    return x * weight + tl.load(bias_ptr + offsets, mask=valid, other=0.0).to(tl.float32)


@jit
def norm_fwd_kernel(
    x_ptr,
    residual_ptr,
    sum_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """One row per program: `sum = x + residual` (where there is one), `out = LayerNorm(sum)`."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    in_head, in_tail = head < WIDTH, tail < WIDTH
    x_ptr += row * x_stride
    residual_ptr += row * residual_stride
    sum_ptr += row * WIDTH
    out_ptr += row * WIDTH
    a = load_sum(x_ptr, residual_ptr, sum_ptr, head, in_head, RESIDUAL)
    b = load_sum(x_ptr, residual_ptr, sum_ptr, tail, in_tail, RESIDUAL)
    a, b, _ = standardise(a, b, in_head, in_tail, eps, WIDTH)
    a = affine(a, weight_ptr, bias_ptr, head, in_head)
    b = affine(b, weight_ptr, bias_ptr, tail, in_tail)
    tl.store(out_ptr + head, a.to(out_ptr.dtype.element_ty), mask=in_head)
    tl.store(out_ptr + tail, b.to(out_ptr.dtype.element_ty), mask=in_tail)


@jit
def weighted_grad(grad_ptr, weight_ptr, offsets, valid):
    """`grad * weight` for a part of a row, in float32."""
    grad = tl.load(grad_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    return grad * tl.load(weight_ptr + offsets, mask=valid, other=0.0).to(tl.float32)


@jit
def store_grad(dx, out_ptr, grad_sum_ptr, offsets, valid, GRAD_SUM: tl.constexpr):
    """Stores a part of dX, plus what reaches the sum directly."""
    if GRAD_SUM:
        dx += tl.load(grad_sum_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, dx.to(out_ptr.dtype.element_ty), mask=valid)


@jit
def norm_bwd_kernel(
    grad_ptr,
    grad_sum_ptr,
    sum_ptr,
    weight_ptr,
    out_ptr,
    sum_stride,
    eps,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    GRAD_SUM: tl.constexpr,
):
    """One row per program: `dX = (g - mean(g) - xhat mean(g xhat)) / std`, `g = grad weight`."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL)
    in_head, in_tail = head < WIDTH, tail < WIDTH
    sum_ptr += row * sum_stride
    grad_ptr += row * WIDTH
    grad_sum_ptr += row * WIDTH
    out_ptr += row * WIDTH
    a = load_sum(sum_ptr, sum_ptr, sum_ptr, head, in_head, False)
    b = load_sum(sum_ptr, sum_ptr, sum_ptr, tail, in_tail, False)
    a, b, rstd = standardise(a, b, in_head, in_tail, eps, WIDTH)
    grad_a = weighted_grad(grad_ptr, weight_ptr, head, in_head)
    grad_b = weighted_grad(grad_ptr, weight_ptr, tail, in_tail)
    mean = (tl.sum(grad_a, 0) + tl.sum(grad_b, 0)) / WIDTH
    slope = (tl.sum(grad_a * a, 0) + tl.sum(grad_b * b, 0)) / WIDTH
    dx_a = rstd * (grad_a - mean - a * slope)
    dx_b = rstd * (grad_b - mean - b * slope)
    store_grad(dx_a, out_ptr, grad_sum_ptr, head, in_head, GRAD_SUM)
    store_grad(dx_b, out_ptr, grad_sum_ptr, tail, in_tail, GRAD_SUM)


def parts(width: int) -> tuple[int, int]:
    """Two powers of two that cover `width`: the largest one below it, and the rest rounded up."""
    head = 1 << max((width - 1).bit_length() - 1, 0)
    return head, 1 << max(width - head - 1, 0).bit_length()


def row_launch(width: int) -> dict[str, int]:
    """How a kernel of one row per program is launched: the parts, and at least 8 values a lane."""
    head, tail = parts(width)
    warps = min(max((head + tail) // 256, 1), 8)
    return {"WIDTH": width, "HEAD": head, "TAIL": tail, "num_warps": 1 << warps.bit_length() - 1}


def as_rows(x: Tensor) -> Tensor:
    """`(..., width)` as `(rows, width)` whose rows are dense; a view wherever the strides allow."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def launch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Runs the forward kernel on `(rows, width)`; without residual the second result is `x`."""
    x, stream = as_rows(x), x if residual is None else as_rows(residual)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    summed = x if residual is None else torch.empty(x.shape, dtype=stream.dtype, device=x.device)
    if x.numel():
        with on(x.device):
            norm_fwd_kernel[(len(x),)](
                x,
                stream,
                summed,
                weight.contiguous(),
                bias.contiguous(),
                out,
                x.stride(0),
                stream.stride(0),
                eps,
                RESIDUAL=residual is not None,
                **row_launch(x.shape[-1]),
            )
    return out, summed


@torch.library.custom_op("steer::norm", mutates_args=())
def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return launch_norm(x, None, weight, bias, eps)[0]


@torch.library.custom_op("steer::add_norm", mutates_args=())
def _add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return launch_norm(x, residual, weight, bias, eps)


def launch_norm_backward(
    grad: Tensor, grad_sum: Tensor | None, summed: Tensor, weight: Tensor, eps: float
) -> Tensor:
    """Runs the backward kernel on `(rows, width)`: the gradient of the sum, of its type."""
    summed, grad = as_rows(summed), grad.contiguous()
    direct = grad if grad_sum is None else grad_sum.contiguous()
    out = torch.empty(summed.shape, dtype=summed.dtype, device=summed.device)
    if out.numel():
        with on(out.device):
            norm_bwd_kernel[(len(out),)](
                grad,
                direct,
                summed,
                weight.contiguous(),
                out,
                summed.stride(0),
                eps,
                GRAD_SUM=grad_sum is not None,
                **row_launch(out.shape[-1]),
            )
    return out


@torch.library.custom_op("steer::norm_backward", mutates_args=())
def _norm_backward(
    grad: Tensor, grad_sum: Tensor | None, summed: Tensor, weight: Tensor, eps: float
) -> Tensor:
    return launch_norm_backward(grad, grad_sum, summed, weight, eps)


@_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@_add_norm.register_fake
def _(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), residual.new_empty(x.shape)


@_norm_backward.register_fake
def _(grad: Tensor, grad_sum: Tensor | None, summed: Tensor, weight: Tensor, eps: float) -> Tensor:
    return summed.new_empty(summed.shape)


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _norm_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    return _norm_backward(grad, None, x, weight, ctx.eps), None, None, None


def _add_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, _, ctx.eps = inputs
    ctx.dtypes = x.dtype, residual.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], weight)


def _add_norm_grad(
    ctx: Any, grad: Tensor | None, grad_sum: Tensor | None
) -> tuple[Tensor | None, ...]:
    summed, weight = ctx.saved_tensors
    dx = grad_sum
    if grad is not None:
        dx = _norm_backward(grad, grad_sum, summed, weight, ctx.eps)
    if dx is None:
        return None, None, None, None, None
    return dx.to(ctx.dtypes[0]), dx.to(ctx.dtypes[1]), None, None, None


_norm.register_autograd(_norm_grad, setup_context=_norm_setup)
_add_norm.register_autograd(_add_norm_grad, setup_context=_add_norm_setup)


def check_norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    """Refuses what `norm` cannot take.

    Raises:
        TypeError, ValueError: Naming the argument, its value and the way out.
    """
    check_floating(x=x, weight=weight, bias=bias, residual=residual)
    check_same_device(x=x, weight=weight, bias=bias, residual=residual)
    check_frozen(weight=weight, bias=bias)
    if x.dtype not in (*FLOATS, torch.float64):
        raise TypeError(f"x.dtype={x.dtype}: pass float16, bfloat16 or float32")
    if x.ndim < 1 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:] or not len(weight):
        raise ValueError(
            f"x.shape={tuple(x.shape)}, weight.shape={tuple(weight.shape)}, "
            f"bias.shape={tuple(bias.shape)}: weight and bias are (width,), width the last of x"
        )
    if residual is None:
        return
    if residual.shape != x.shape:
        raise ValueError(
            f"residual.shape={tuple(residual.shape)}: pass one of x's, {tuple(x.shape)}"
        )
    if residual.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"residual.dtype={residual.dtype}: pass x's, {x.dtype}, or torch.float32")


def norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Adds the residual stream and normalises the sum; differentiable in `x` and `residual`.

    Args:
        x: `(..., width)`, any strides.
        weight: `(width,)`, frozen.
        bias: `(width,)`, frozen.
        eps: Added to the variance.
        residual: `(..., width)` of x's type, or float32 for a stream kept in float32.

    Returns:
        `normalised`, of x's shape and type, and `summed`, of the residual's type (`x` itself
        without a residual). What is normalised is the sum as stored, rounded to its type.

    Raises:
        TypeError: Not floating point, or a residual of another type.
        ValueError: Shapes that do not fit, several devices, or weights that want a gradient.
    """
    check_norm(x, weight, bias, residual)
    if not (runs_triton(x, FLOATS) and x.shape[-1] <= MAX_WIDTH):
        return norm_ref(x, weight, bias, eps, residual)
    rows = as_rows(x)
    if residual is None:
        return _norm(rows, weight, bias, eps).view(x.shape), x
    out, summed = _add_norm(rows, as_rows(residual), weight, bias, eps)
    return out.view(x.shape), summed.view(x.shape)
