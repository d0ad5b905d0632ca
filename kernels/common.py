"""What every op shares: Triton if it is there, input checks, launch tables, the matrix product.

Rules for a kernel in this package:

- Loads are raised to float32 at once: the interpreter's bfloat16 arithmetic is wrong, and a masked
  load always passes `other`. Operands of a product go through `dot`, which raises bfloat16 under
  the interpreter only (`UP`), so that tensor cores still see half precision.
- The batch offset is 64 bits wide (`batch.to(tl.int64) * stride`); inside one row of the batch 32
  bits are enough, and `check_span` refuses what they cannot address.
- No atomics, no autotuning: a launch comes from a table in the op's own file.
- `tl.erf`, `tl.exp2` and `tl.sigmoid` instead of libdevice, which the interpreter does not have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from steer_kernels.backend import backend
from torch import Tensor


if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ModuleNotFoundError:  # no Triton on this platform: only references run
        triton = tl = None

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run under Triton's interpreter, fixed when this module is imported."""

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)

_LIMIT = 2**31


class Kernel(Protocol):
    """A jitted function: launched as `kernel[grid](...)`, or called from another."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]: ...

    def __call__(self, *arguments: Any, **constants: Any) -> Any: ...


def jit(function: Callable[..., Any]) -> Kernel:
    """`triton.jit`, or the function itself where there is no Triton."""
    compiled: Any = function if triton is None else triton.jit(function)
    return compiled


@jit
def dot(a, b, acc, UP: tl.constexpr):
    """`acc + a @ b` in float32; `UP` raises the operands first (bfloat16 under the interpreter)."""
    if UP:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@jit
def round_even(x):
    """The nearest integer of a float32 below 2**22 in size, ties to even."""
    return (x + 12582912.0) - 12582912.0  # 1.5 * 2**23: what is below one falls off


def upcast(dtype: torch.dtype) -> bool:
    """The constant `UP` of `dot` for operands of `dtype`."""
    return INTERPRET and dtype == torch.bfloat16


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched: its block sizes by name, warps and pipeline stages."""

    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {**self.blocks, "num_warps": self.warps, "num_stages": self.stages}


def launch_for(table: Mapping[int, Launch], device: torch.device) -> Launch:
    """The entry of the newest architecture in `table` (80, 90, 100, ...) that `device` reaches.

    Consumer Blackwell (12.x) counts as 8.9, whose shared memory it has; the interpreter as 8.0.
    """
    if device.type != "cuda":
        return table[min(table)]
    major, minor = torch.cuda.get_device_capability(device)
    reached = 89 if major == 12 else 10 * major + minor
    return table[max(sm for sm in table if sm <= reached)]


def runs_triton(tensor: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS) -> bool:
    """Whether the Triton kernel takes this tensor: else the op's reference does."""
    return tensor.dtype in dtypes and _backend(str(tensor.device)) == "triton"


@torch.compiler.assume_constant_result
def _backend(device: str) -> str:
    return backend(device)  # cached and logged: nothing for torch.compile to trace


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` the current one for a launch."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def check_floating(**tensors: Tensor | None) -> None:
    """Refuses tensors that are not floating point.

    Raises:
        TypeError: Naming the argument and its type.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name}.dtype={tensor.dtype}: pass a floating-point tensor")


def check_same_device(**tensors: Tensor | None) -> None:
    """Refuses tensors on several devices.

    Raises:
        ValueError: Naming the arguments and their devices.
    """
    given = {name: str(t.device) for name, t in tensors.items() if t is not None}
    if len(set(given.values())) > 1:
        places = ", ".join(f"{name} on {device}" for name, device in given.items())
        raise ValueError(f"{places}: move them to one device")


def check_frozen(**weights: Tensor | None) -> None:
    """Refuses weights that want a gradient: the backward passes give it to the input only.

    Raises:
        ValueError: Naming the argument.
    """
    for name, weight in weights.items():
        if weight is not None and weight.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}.requires_grad=True: only the input gets a gradient; freeze the weights "
                "(module.requires_grad_(False)) or pass them detached"
            )


def check_span(name: str, tensor: Tensor, per_row: bool = True) -> None:
    """Refuses tensors whose offsets leave 32 bits, within one row of the first axis or altogether.

    Raises:
        ValueError: Naming the argument and its shape.
    """
    sizes, strides = tensor.shape[int(per_row) :], tensor.stride()[int(per_row) :]
    span = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if tensor.numel() and span > _LIMIT:
        what = "one row spans" if per_row else "it spans"
        raise ValueError(
            f"{name}.shape={tuple(tensor.shape)}: {what} {span} elements, more than 2**31; "
            "pass it in smaller parts"
        )
