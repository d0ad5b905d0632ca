"""Kernels compiled ahead of time to machine code, without a GPU, and what the result uses."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


REGISTERS = 65_536
"""Of one multiprocessor, on all three architectures."""
CHOSEN = 128
"""The most registers per thread at which what is spilled is the assembler's choice: it had 255, and
gave a few values up so that one more block fits. Above, it has run out of registers."""
SPILLED = 64
"""The most bytes per thread that it may so choose to spill, sixteen values. Seen are none or two to
eight, another count with every Triton; `test_a_gate_that_should_close_closes` sees hundreds."""
TENSOR_CORES = {80: r"\bmma\.sync", 90: r"\b(wgmma\.mma_async|mma\.sync)", 100: r"\btcgen05\.mma"}


@dataclass(frozen=True)
class Case:
    """One configuration of one kernel, with what it may use.

    Attributes:
        name: Of the test.
        kernel: The jitted function.
        constants: Its `constexpr` arguments, and strides that are 1.
        types: Types of arguments by name; pointers are `*bf16` and all others `i32` by default.
        warps: As launched.
        stages: As launched.
        fusion: Whether multiply and add may become one instruction.
        blocks: How many its registers must let a multiprocessor hold at least. Register counts
            differ with every Triton by a few; how many blocks hide each other's waiting is what
            they are for.
        tensor_cores: Per architecture, a pattern that its PTX must contain, or `""` for none.
    """

    name: str
    kernel: Any
    constants: Mapping[str, Any]
    types: Mapping[str, str] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    fusion: bool = True
    blocks: int = 1
    tensor_cores: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """What one kernel became.

    Attributes:
        registers: Per thread.
        stack: Bytes per thread in local memory, where spills go.
        shared: Bytes of shared memory per block.
        ptx: The assembly.
        warps: As launched.
    """

    registers: int
    stack: int
    shared: int
    ptx: str = field(repr=False)
    warps: int

    @property
    def blocks(self) -> int:
        """How many blocks the registers of a multiprocessor are enough for, given out by eights."""
        return REGISTERS // (-(-self.registers // 8) * 8 * 32 * self.warps)

    @property
    def may_spill(self) -> int:
        """Bytes per thread in local memory that are no want of registers."""
        return SPILLED if self.registers <= CHOSEN else 0


def build(case: Case, sm: int) -> Built:
    """`case` compiled for one architecture (80, 90, 100) by the assembler that Triton bundles."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    unknown = (set(case.constants) | set(case.types)) - set(names)
    assert not unknown, f"{case.name}: no argument {sorted(unknown)}"
    signature = {name: _type(case, name) for name in names}
    source = ASTSource(
        case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names)
            if signature[name].startswith("*")
        },
    )
    options = {
        "num_warps": case.warps,
        "num_stages": case.stages,
        "enable_fp_fusion": case.fusion,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    used = _usage(compiled.asm["cubin"])
    return Built(*used, compiled.metadata.shared, compiled.asm["ptx"], case.warps)


def _type(case: Case, name: str) -> str:
    if name in case.constants:
        return "constexpr"
    assert not name.isupper(), f"{case.name}: no value for {name}"
    return case.types.get(name, "*bf16" if name.endswith("_ptr") else "i32")


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack, read from the machine code itself."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])
