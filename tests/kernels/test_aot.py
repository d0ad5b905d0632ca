"""Kernels compiled for A100, H100 and B200 without a GPU: registers, spills, tensor cores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from aot import SPILLED, TENSOR_CORES, Case, build
from aot_layers import CASES as LAYERS
from steer_kernels import attention_cls, resize_kernels
from steer_kernels.backend import has_triton
from steer_kernels.common import Launch


if not has_triton():
    pytest.skip("the kernels need Triton 3.6", allow_module_level=True)

RESIZE = {"SIDE": 16, "PATCH": 14, "EDGES": False, "CUT": False}
RESIZE_FWD = {**RESIZE, "TILE": 16, "K": 32, "CLAMP": True, "KEEP": True, "stride_x": 1}
RESIZE_BWD = {**RESIZE, "TILE": 32, "K": 32, "EXACT": True, "KEEP": True}
INDICES = ("start_y", "start_x", "first_y", "end_y", "first_x", "end_x")
WEIGHTS = {"weight_y_ptr": "*fp32", "weight_x_ptr": "*fp32", "keep_ptr": "*u8"}
SCALARS = ("low", "scale", *(f"{v}_{c}" for v in ("mean", "std") for c in range(3)))
FWD_TYPES = {
    **WEIGHTS,
    **{f"{name}_ptr": "*i32" for name in INDICES[:2]},
    **dict.fromkeys(SCALARS, "fp32"),
}
BWD_TYPES = {
    **WEIGHTS,
    **{f"{name}_ptr": "*i32" for name in INDICES},
    **dict.fromkeys(("low", "scale", "factor_0", "factor_1", "factor_2"), "fp32"),
}
WGMMA = {**TENSOR_CORES, 90: r"\bwgmma\.mma_async"}
MMA = {80: r"\bmma\.sync", 90: r"\bmma\.sync", 100: r"\b(mma\.sync|tcgen05\.mma)"}


def _attention(name: str, dim: int, launch: Launch) -> Case:
    constants = {"D": dim, "REST": attention_cls.rest(dim), "UP": False, **launch.blocks}
    return Case(
        name,
        attention_cls._attention_cls_fwd_kernel,
        constants,
        {"scale": "fp32"},
        warps=launch.warps,
        stages=launch.stages,
        tensor_cores=WGMMA,
    )


CASES = [
    (
        Case(
            "resize_fwd",
            resize_kernels.resize_fwd_kernel,
            {**RESIZE_FWD, "PIL": False, "EXACT": True},
            FWD_TYPES,
            blocks=2,
            tensor_cores=MMA,
        ),
        (80, 90, 100),
    ),
    (
        Case(
            "resize_fwd_pil",
            resize_kernels.resize_fwd_kernel,
            {**RESIZE_FWD, "PIL": True, "EXACT": True},
            FWD_TYPES,
            blocks=2,
            fusion=False,
            tensor_cores=MMA,
        ),
        (80, 90, 100),
    ),
    (
        Case(
            "resize_bwd",
            resize_kernels.resize_bwd_kernel,
            RESIZE_BWD,
            BWD_TYPES,
            blocks=2,
            tensor_cores=MMA,
        ),
        (80, 90, 100),
    ),
    (_attention("attention_cls_64", 64, attention_cls.LAUNCHES[80]), (80, 90, 100)),
    (_attention("attention_cls_64_small", 64, attention_cls.SMALL[80]), (80, 90, 100)),
    (_attention("attention_cls_80", 80, attention_cls.LAUNCHES[80]), (80, 90, 100)),
    (_attention("attention_cls_104", 104, attention_cls.WIDE[80]), (80,)),
    (_attention("attention_cls_104", 104, attention_cls.WIDE[90]), (90, 100)),
    (
        Case(
            "attention_cls_row",
            attention_cls._attention_cls_row_kernel,
            {"D": 80, **attention_cls.ROW_LAUNCHES[80].blocks},
            {"scale": "fp32"},
            warps=attention_cls.ROW_LAUNCHES[80].warps,
            blocks=2,
        ),
        (80, 90, 100),
    ),
    *LAYERS,
]


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")


def sampled(place: int, sms: tuple[int, ...]) -> int:
    """The one card that the suite compiles a kernel for: B200 once, where compiling is dear."""
    wanted = 100 if place == 0 else (80, 90)[place % 2]
    return wanted if wanted in sms else sms[0]


def compiled(case: Case, sm: int, sample: bool) -> Any:
    """A case of the table."""
    mark = pytest.mark.slow if sample else pytest.mark.exhaustive
    return pytest.param(case, sm, id=f"{case.name}-sm_{sm}", marks=mark)


@pytest.mark.parametrize(
    ("case", "sm"),
    [
        compiled(case, sm, sm == sampled(place, sms))
        for place, (case, sms) in enumerate(CASES)
        for sm in sms
    ],
)
def test_compiled(case: Case, sm: int) -> None:
    built = build(case, sm)
    used = f"{built.registers} registers ({built.blocks} blocks), {built.stack} B stack"
    print(f"{case.name} sm_{sm}: {used}, {built.shared} B shared")
    assert built.blocks >= case.blocks
    assert built.stack <= built.may_spill
    assert built.shared <= {80: 163, 90: 227, 100: 227}[sm] * 1024
    if case.tensor_cores:
        assert re.search(case.tensor_cores[sm], built.ptx)


def test_a_gate_that_should_close_closes() -> None:
    """One warp cannot hold 64 x 64 scores and two accumulators: the spill must be seen."""
    case = next(c for c, _ in CASES if c.name == "attention_cls_64_small")
    built = build(Case("one warp", case.kernel, case.constants, case.types, warps=1), 90)
    assert built.stack > 4 * SPILLED >= 4 * built.may_spill
