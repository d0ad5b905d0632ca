"""What is compiled ahead of time of the ops between matrix products, at ViT-H/14's sizes."""

from __future__ import annotations

from typing import Any

from aot import TENSOR_CORES, Case
from steer_kernels import head, head_kernels, linear_gelu, norm, quant


ALL = (80, 90, 100)
FP8 = (90, 100)


def _row(width: int, **constants: Any) -> tuple[dict[str, Any], int]:
    """Constants and warps of a kernel of one row per program."""
    launch = norm.row_launch(width)
    warps = launch.pop("num_warps")
    return {**launch, **constants}, warps


def _rows(
    name: str, kernel: Any, width: int, types: dict[str, str], blocks: int, **constants: Any
) -> Case:
    values, warps = _row(width, **constants)
    return Case(name, kernel, values, types, warps=warps, blocks=blocks)


def _linear_gelu(sm: int, keep: bool) -> Case:
    launch = linear_gelu.LAUNCHES[sm]
    bm, bn, bk = (launch.blocks[name] for name in ("BM", "BN", "BK"))
    half = f"tensordesc<bf16[{bm}, {bn // 2}]>"
    return Case(
        f"linear_gelu{'_keep' if keep else ''}",
        linear_gelu.linear_gelu_kernel,
        {"QUICK": False, "KEEP": keep, "UP": False, **launch.blocks},
        {
            "x": f"tensordesc<bf16[{bm}, {bk}]>",
            "weight": f"tensordesc<bf16[{bn}, {bk}]>",
            "out": half,
            "pre": half,
        },
        warps=launch.warps,
        stages=launch.stages,
        tensor_cores=TENSOR_CORES,
    )


EPS = {"eps": "fp32"}
Q = {"q_ptr": "*fp8e4nv", "scale_ptr": "*fp32"}
HEAD = {"BM": head.ROWS, "BN": head.COLUMNS, "BK": head.INNER, "STATS": head.STATS}
PROJECT = {"out_ptr": "*fp32", **EPS}
GRAD = {"grad_ptr": "*fp32", "out_ptr": "*fp32"}
SCORE = {
    **{f"{name}_ptr": "*fp32" for name in ("features", "texts", "scores", "norms")},
    "scale": "fp32",
}

CASES: list[tuple[Case, tuple[int, ...]]] = [
    (_rows("norm_fwd", norm.norm_fwd_kernel, 1280, EPS, 8, RESIDUAL=True), ALL),
    (_rows("norm_fwd_1664", norm.norm_fwd_kernel, 1664, EPS, 4, RESIDUAL=True), ALL),
    (_rows("norm_bwd", norm.norm_bwd_kernel, 1280, EPS, 5, GRAD_SUM=True), ALL),
    (
        _rows(
            "norm_quant",
            quant.norm_quant_kernel,
            1280,
            {**EPS, **Q},
            8,
            RESIDUAL=True,
            ROUND=False,
        ),
        FP8,
    ),
    (
        _rows("gelu_quant", quant.gelu_quant_kernel, 5120, Q, 2, QUICK=False, ROUND=False),
        FP8,
    ),
    (
        Case(
            "gelu_bwd",
            linear_gelu.gelu_kernel,
            {"QUICK": True, "GRAD": True, "BLOCK": linear_gelu.ELEMENTS},
            blocks=8,
        ),
        ALL,
    ),
    (_linear_gelu(80, False), (80,)),
    (_linear_gelu(90, False), (90, 100)),
    (_linear_gelu(90, True), (90, 100)),
    (
        Case(
            "head_project",
            head_kernels.project_kernel,
            {"LN": True, "matrix_n": 1, **HEAD},
            PROJECT,
            stages=3,
            blocks=3,
        ),
        ALL,
    ),
    (
        Case(
            "head_project_bwd",
            head_kernels.project_kernel,
            {"LN": False, "matrix_k": 1, **HEAD},
            {**PROJECT, "x_ptr": "*fp32"},
            stages=3,
            blocks=3,
        ),
        ALL,
    ),
    (
        Case(
            "head_score",
            head_kernels.score_kernel,
            {"PAIRED": False, "BM": head.ROWS, "BK": head.INNER},
            SCORE,
            blocks=3,
        ),
        ALL,
    ),
    (
        Case(
            "head_features_grad",
            head_kernels.features_grad_kernel,
            {"PAIRED": False, "BM": head.ROWS, "BN": head.INNER},
            {**SCORE, **GRAD},
            blocks=3,
        ),
        ALL,
    ),
]
