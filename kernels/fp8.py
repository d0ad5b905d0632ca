"""FP8 E4M3 matrices with one float32 scale per row, and their product. Forward only.

`scale = max|row| / 448`, `q = e4m3(row / scale)`: 448 is the largest E4M3 value (Micikevicius et
al., 2022, arXiv:2209.05433). Rounding is to nearest even: a value is off by at most 1/16 of itself,
or by `scale / 1024` where that is more. Activations have one scale per token, weights one per
output channel. The product is `torch._scaled_mm` with row scales.
"""

from __future__ import annotations

import torch
from steer_kernels.common import check_floating, check_same_device
from torch import Tensor


E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest E4M3 value."""

SMALLEST_AMAX = 1e-12
"""Rows below it get the scale of this value, so that rows of zeros stay zeros."""

MINIMUM_CAPABILITY = (8, 9)
MULTIPLE = 16
"""What `torch._scaled_mm` wants both sides of a weight to be a multiple of."""


def quantise_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """`(..., width)` to E4M3 values of the same shape and float32 scales `(...)`."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (x.abs().amax(-1) if x.numel() else x.new_zeros(x.shape[:-1])).float()
    scale = scale.clamp(min=SMALLEST_AMAX) / LARGEST
    return (x * (1.0 / scale).unsqueeze(-1)).to(E4M3), scale


def dequantise(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`q * scale` of q's shape, in `dtype`."""
    return q.to(dtype) * scale.to(dtype).unsqueeze(-1)


def linear_fp8_ref(
    q: Tensor,
    scale: Tensor,
    weight_q: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """`linear_fp8` in plain PyTorch: a product of the dequantised matrices in float32 or wider."""
    work = torch.promote_types(dtype, torch.float32)
    out = dequantise(q, scale, work) @ dequantise(weight_q, weight_scale, work).T
    return (out if bias is None else out + bias.to(work)).to(dtype)


def fp8_available(device: torch.device | str) -> bool:
    """Whether FP8 runs on `device`: CPUs (slowly, as a reference) and NVIDIA GPUs from 8.9 on."""
    device = torch.device(device)
    if device.type != "cuda" or torch.version.hip is not None:
        return device.type == "cpu"
    return torch.cuda.get_device_capability(device) >= MINIMUM_CAPABILITY


def check_fp8(device: torch.device) -> None:
    """Refuses devices without FP8.

    Raises:
        ValueError: Naming the device and the way out.
    """
    if not fp8_available(device):
        raise ValueError(
            f"device={str(device)!r} has no FP8 (E4M3) products: they need an NVIDIA GPU of "
            "compute capability 8.9 or newer (Ada, Hopper, Blackwell); use bfloat16 there"
        )


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight `(N, K)` as E4M3 `(N, K)` and one float32 scale per output channel `(N,)`.

    Raises:
        TypeError: Not floating point.
        ValueError: Not a matrix, not finite, or a device without FP8.
    """
    check_floating(weight=weight)
    check_fp8(weight.device)
    if weight.ndim != 2:
        raise ValueError(f"weight.shape={tuple(weight.shape)}: pass (N, K)")
    if not torch.isfinite(weight).all():
        raise ValueError("weight has NaN or infinite entries: FP8 cannot hold them; check the file")
    return quantise_ref(weight.detach())


def linear_fp8(
    q: Tensor,
    scale: Tensor,
    weight_q: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """`dequantise(q) @ dequantise(weight).T + bias`: `torch._scaled_mm` on GPUs.

    Args:
        q: E4M3 `(..., K)`.
        scale: float32 `(...)`.
        weight_q: E4M3 `(N, K)`.
        weight_scale: float32 `(N,)`.
        bias: `(N,)` or None.
        dtype: Type of the result; GPUs have bfloat16 only.

    Returns:
        `(..., N)`.

    Raises:
        TypeError: Another type than those above.
        ValueError: Shapes that do not fit, several devices, no FP8 there, or on a GPU N or K not a
            multiple of 16.
    """
    _check_product(q, scale, weight_q, weight_scale, bias)
    if q.device.type != "cuda":
        return linear_fp8_ref(q, scale, weight_q, weight_scale, bias, dtype)
    _check_scaled_mm(weight_q, dtype)
    rows = q.reshape(-1, q.shape[-1]).contiguous()
    out = torch._scaled_mm(
        rows,
        weight_q.contiguous().T,
        scale_a=scale.reshape(-1, 1).contiguous(),
        scale_b=weight_scale.reshape(1, -1).contiguous(),
        bias=None if bias is None else bias.to(dtype),
        out_dtype=dtype,
        use_fast_accum=True,
    )
    return out.view(*q.shape[:-1], len(weight_q))


def _check_product(
    q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> None:
    check_floating(q=q, scale=scale, weight_q=weight_q, weight_scale=weight_scale, bias=bias)
    check_same_device(q=q, scale=scale, weight_q=weight_q, weight_scale=weight_scale, bias=bias)
    check_fp8(q.device)
    for name, tensor, dtype in (
        ("q", q, E4M3),
        ("weight_q", weight_q, E4M3),
        ("scale", scale, torch.float32),
        ("weight_scale", weight_scale, torch.float32),
    ):
        if tensor.dtype != dtype:
            raise TypeError(f"{name}.dtype={tensor.dtype}: pass {dtype}")
    if weight_q.ndim != 2 or q.ndim < 1 or q.shape[-1] != weight_q.shape[1]:
        raise ValueError(
            f"q.shape={tuple(q.shape)}, weight_q.shape={tuple(weight_q.shape)}: "
            "pass (..., K) and (N, K)"
        )
    for name, tensor, shape in (
        ("scale", scale, q.shape[:-1]),
        ("weight_scale", weight_scale, weight_q.shape[:1]),
        ("bias", bias, weight_q.shape[:1]),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}.shape={tuple(tensor.shape)}: pass {tuple(shape)}")


def _check_scaled_mm(weight_q: Tensor, dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        raise TypeError(f"dtype={dtype}: FP8 products on a GPU give torch.bfloat16")
    if any(size % MULTIPLE for size in weight_q.shape):
        raise ValueError(
            f"weight_q.shape={tuple(weight_q.shape)}: on a GPU both sides must be multiples of "
            f"{MULTIPLE}; keep this layer in bfloat16"
        )
