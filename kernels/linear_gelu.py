"""`gelu(x @ weight.T + bias)` with the GELU in the product's epilogue, and the GELU alone.

`kind="erf"`: `x * Phi(x)` (Hendrycks and Gimpel, 2016, arXiv:1606.08415), in LAION's ViT-H and
bigG; `kind="quick"`: `x * sigmoid(1.702 x)`, in OpenAI's ViT-L/14. cuBLASLt's own GELU epilogue is
the tanh approximation, so it serves neither. On sm_80 descriptors become plain loads without a
pipeline; the kernel is made for sm_90 and newer.

Which form runs is decided per architecture by `FUSED`, and by the environment variable
`STEER_LINEAR_GELU` = `fused` or `separate`. An entry goes into `FUSED` when a measurement on that
architecture shows the fused product faster than cuBLAS followed by a GELU; without one, the two
separate steps run. Weights are frozen: gradients for the input only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from steer_kernels.common import (
    FLOATS,
    HALVES,
    INTERPRET,
    Launch,
    check_floating,
    check_frozen,
    check_same_device,
    dot,
    jit,
    launch_for,
    on,
    runs_triton,
    tl,
    upcast,
)
from steer_kernels.norm import as_rows
from torch import Tensor


Kind = Literal["erf", "quick"]
KINDS = ("erf", "quick")
ELEMENTS = 1024
"""Elements per program of the GELU alone."""

FUSED: Mapping[int, bool] = {}
"""Architectures (80, 90, ...) on which the fused product was measured, and whether it won."""

SWITCH = "STEER_LINEAR_GELU"

LAUNCHES = {
    80: Launch({"BM": 128, "BN": 128, "BK": 32, "GROUP": 8}, warps=8, stages=4),
    90: Launch({"BM": 128, "BN": 256, "BK": 64, "GROUP": 8}, warps=8, stages=3),
}
SMALL = Launch({"BM": 32, "BN": 32, "BK": 32, "GROUP": 8})
"""Blocks under the interpreter, which has no use for large ones."""


def gelu_ref(x: Tensor, kind: Kind = "erf") -> Tensor:
    """GELU in plain PyTorch, of x's shape and type."""
    return x * torch.sigmoid(1.702 * x) if kind == "quick" else F.gelu(x)


def linear_gelu_ref(x: Tensor, weight: Tensor, bias: Tensor, kind: Kind = "erf") -> Tensor:
    """`linear_gelu` in plain PyTorch: cuBLAS, then the GELU."""
    return gelu_ref(F.linear(x, weight, bias), kind)


@jit
def gelu_value(x, QUICK: tl.constexpr):
    """GELU of a float32 block."""
    if QUICK:
        return x * tl.sigmoid(1.702 * x)
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@jit
def gelu_slope(x, QUICK: tl.constexpr):
    """Derivative of the GELU of a float32 block."""
    if QUICK:
        gate = tl.sigmoid(1.702 * x)
        return gate * (1.0 + 1.702 * x * (1.0 - gate))
    density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density


@jit
def gelu_kernel(
    x_ptr, grad_ptr, out_ptr, count, QUICK: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr
):
    """`out = gelu(x)`, or with GRAD `out = grad * gelu'(x)`, over dense memory."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < count
    x = tl.load(x_ptr + index, mask=valid, other=0.0).to(tl.float32)
    if GRAD:
        grad = tl.load(grad_ptr + index, mask=valid, other=0.0).to(tl.float32)
        out = grad * gelu_slope(x, QUICK)
    else:
        out = gelu_value(x, QUICK)
    tl.store(out_ptr + index, out.to(out_ptr.dtype.element_ty), mask=valid)


@jit
def store_half(
    acc, bias_ptr, out, pre, row, column, n,
    QUICK: tl.constexpr, KEEP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds the bias to WIDTH columns, stores their GELU and, with KEEP, what went into it."""
    columns = column + tl.arange(0, WIDTH)
    bias = tl.load(bias_ptr + columns, mask=columns < n, other=0.0).to(tl.float32)
    acc += bias[None, :]
    if KEEP:
        pre.store([row, column], acc.to(pre.dtype))
    out.store([row, column], gelu_value(acc, QUICK).to(out.dtype))


@jit
def linear_gelu_kernel(
    x,
    weight,
    bias_ptr,
    out,
    pre,
    m,
    n,
    depth,
    QUICK: tl.constexpr,
    KEEP: tl.constexpr,
    UP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """`(BM, BN)` tiles in turn per program, GROUP tile rows at a time so that weights stay in L2.

    `x` (m, depth), `weight` (n, depth), `out` and `pre` (m, n) are tensor descriptors, TMA from
    sm_90 on: they read zeros and write nothing outside. The tile is stored in two halves, which
    halves the shared memory of the epilogue.
    """
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    tiles, group = tiles_m * tiles_n, GROUP * tiles_n
    first_tile, step = tl.program_id(0), tl.num_programs(0)
    for tile in tl.range(first_tile, tiles, step, flatten=True):  # pyright: ignore
        first = tile // group * GROUP
        height = tl.minimum(tiles_m - first, GROUP)
        row = (first + tile % group % height) * BM
        column = tile % group // height * BN
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(0, depth, BK):
            acc = dot(x.load([row, k]), weight.load([column, k]).T, acc, UP)
        halves = tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        store_half(left, bias_ptr, out, pre, row, column, n, QUICK, KEEP, BN // 2)
        store_half(right, bias_ptr, out, pre, row, column + BN // 2, n, QUICK, KEEP, BN // 2)


def gelu_launch(x: Tensor, grad: Tensor | None, quick: bool) -> Tensor:
    """Runs the elementwise kernel on dense tensors; with `grad`, its derivative times `grad`."""
    x = x.contiguous()
    upstream = x if grad is None else grad.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        with on(x.device):
            gelu_kernel[(-(-x.numel() // ELEMENTS),)](
                x, upstream, out, x.numel(), QUICK=quick, GRAD=grad is not None, BLOCK=ELEMENTS
            )
    return out


def linear_gelu_launch(
    x: Tensor, weight: Tensor, bias: Tensor, quick: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """Runs the fused kernel on `x` (M, K): the output, and what went into the GELU if `keep`."""
    x, weight = dense_rows(x), dense_rows(weight)
    (m, k), n = x.shape, len(weight)
    launch = SMALL if INTERPRET else launch_for(LAUNCHES, x.device)
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    pre = torch.empty((m, n) if keep else (0, n), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out, pre
    bm, bn, bk = (launch.blocks[name] for name in ("BM", "BN", "BK"))
    target = descriptor(out, bm, bn // 2)
    with on(x.device):
        linear_gelu_kernel[(min(-(-m // bm) * -(-n // bn), programs(x.device)),)](
            descriptor(x, bm, bk),
            descriptor(weight, bn, bk),
            bias.contiguous(),
            target,
            descriptor(pre, bm, bn // 2) if keep else target,
            m,
            n,
            k,
            QUICK=quick,
            KEEP=keep,
            UP=upcast(x.dtype),
            **launch.options,
        )
    return out, pre


def descriptor(matrix: Tensor, rows: int, columns: int) -> Any:
    """A matrix as the kernel reads it, in blocks of `rows` x `columns`."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    shape, strides = [int(size) for size in matrix.shape], [int(s) for s in matrix.stride()]
    return TensorDescriptor(matrix, shape, strides, [rows, columns])


def dense_rows(matrix: Tensor) -> Tensor:
    """The matrix as descriptors take it: 16-byte aligned rows of adjacent elements."""
    return matrix if _aligned(matrix) else matrix.clone(memory_format=torch.contiguous_format)


def _aligned(matrix: Tensor) -> bool:
    bytes_apart = matrix.stride(0) * matrix.element_size()
    return matrix.stride(1) == 1 and bytes_apart % 16 == 0 and matrix.data_ptr() % 16 == 0


def programs(device: torch.device) -> int:
    """How many programs share the tiles: one per multiprocessor."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


@torch.compiler.assume_constant_result
def fused(device: str) -> bool:
    """Whether `linear_gelu` on `device` runs the fused kernel: the switch, then the table.

    Raises:
        ValueError: The switch has another value than `fused` or `separate`.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "fused", "separate"):
        raise ValueError(f"{SWITCH}={switch!r}: set it to 'fused' or 'separate', or unset it")
    if switch or torch.device(device).type != "cuda":
        return switch == "fused"
    major, minor = torch.cuda.get_device_capability(device)
    return FUSED.get(10 * major + minor, False)


@torch.library.custom_op("steer::gelu", mutates_args=())
def _gelu(x: Tensor, quick: bool) -> Tensor:
    return gelu_launch(x, None, quick)


@torch.library.custom_op("steer::gelu_backward", mutates_args=())
def _gelu_backward(grad: Tensor, x: Tensor, quick: bool) -> Tensor:
    return gelu_launch(x, grad, quick)


@torch.library.custom_op("steer::linear_gelu", mutates_args=())
def _linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, quick: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    return linear_gelu_launch(x, weight, bias, quick, keep)


@_gelu.register_fake
def _(x: Tensor, quick: bool) -> Tensor:
    return x.new_empty(x.shape)


@_gelu_backward.register_fake
def _(grad: Tensor, x: Tensor, quick: bool) -> Tensor:
    return x.new_empty(x.shape)


@_linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, quick: bool, keep: bool) -> tuple[Tensor, Tensor]:
    m, n = x.shape[0], weight.shape[0]
    return x.new_empty((m, n)), x.new_empty((m if keep else 0, n))


def _gelu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.quick = inputs
    ctx.save_for_backward(x)


def _gelu_grad(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _gelu_backward(grad, ctx.saved_tensors[0], ctx.quick), None


def _linear_gelu_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, weight, _, ctx.quick, ctx.keep = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, output[1])


def _linear_gelu_grad(
    ctx: Any, grad: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, None, None, None, None]:
    if grad is None:
        return None, None, None, None, None
    if not ctx.keep:
        raise RuntimeError("steer::linear_gelu ran with keep=False: its input has no gradient")
    weight, pre = ctx.saved_tensors
    return _gelu_backward(grad, pre, ctx.quick) @ weight, None, None, None, None


_gelu.register_autograd(_gelu_grad, setup_context=_gelu_setup)
_linear_gelu.register_autograd(_linear_gelu_grad, setup_context=_linear_gelu_setup)


def check_kind(kind: str) -> None:
    """Refuses an unknown GELU.

    Raises:
        ValueError: Naming the value and the known ones.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: pass one of {', '.join(map(repr, KINDS))}")


def gelu(x: Tensor, kind: Kind = "erf") -> Tensor:
    """GELU of x's shape and type, one pass forward and one backward; arithmetic in float32.

    PyTorch's own kernel serves "erf"; "quick" would be three of them.

    Raises:
        TypeError: Not floating point.
        ValueError: Unknown kind.
    """
    check_floating(x=x)
    check_kind(kind)
    return _gelu(x, True) if kind == "quick" and runs_triton(x, FLOATS) else gelu_ref(x, kind)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, kind: Kind = "erf") -> Tensor:
    """`gelu(x @ weight.T + bias)`, differentiable in x.

    The fused kernel applies the GELU to the float32 sum; cuBLAS rounds it to x's type first. For a
    gradient the fused kernel stores its sum, rounded.

    Args:
        x: `(..., K)`, any strides.
        weight: `(N, K)` of x's type, frozen, as in `torch.nn.Linear`.
        bias: `(N,)`, frozen.
        kind: "erf" or "quick".

    Returns:
        `(..., N)` of x's type.

    Raises:
        TypeError: Not floating point, or weights of another type.
        ValueError: Shapes that do not fit, several devices, an unknown kind, a switch with an
            unknown value, or weights that want a gradient.
    """
    _check(x, weight, bias, kind)
    if not _runs_fused(x, weight):
        return gelu(F.linear(x, weight, bias), kind)
    keep = x.requires_grad and torch.is_grad_enabled()
    out, _ = _linear_gelu(as_rows(x), weight, bias, kind == "quick", keep)
    return out.view(*x.shape[:-1], len(weight))


def _runs_fused(x: Tensor, weight: Tensor) -> bool:
    # Rows of any other length are not aligned to 16 bytes. On GPUs float32 is cuBLAS's.
    whole = all(size and size * x.element_size() % 16 == 0 for size in weight.shape)
    dtypes = FLOATS if INTERPRET else HALVES
    return whole and fused(str(x.device)) and runs_triton(x, dtypes)


def _check(x: Tensor, weight: Tensor, bias: Tensor, kind: str) -> None:
    check_floating(x=x, weight=weight, bias=bias)
    check_same_device(x=x, weight=weight, bias=bias)
    check_frozen(weight=weight, bias=bias)
    check_kind(kind)
    if x.ndim < 1 or weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"x.shape={tuple(x.shape)}, weight.shape={tuple(weight.shape)}: pass (..., K), (N, K)"
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias.shape={tuple(bias.shape)}: pass ({len(weight)},)")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name}.dtype={tensor.dtype}: pass x's, {x.dtype}")
