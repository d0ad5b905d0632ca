"""Rows: which belong to which prompt, and one number for each, spread over its latents."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def rows_by_prompt(names: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Row numbers by prompt, in order, of rows that are named (prompt, particle)."""
    rows: dict[int, list[int]] = {}
    for row, (prompt, _) in enumerate(names):
        rows.setdefault(prompt, []).append(row)
    return rows


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """`(rows,)` as `(rows, 1, ...)`, to be multiplied with `like` of `(rows, ...)`."""
    return values.view(-1, *(1,) * (like.ndim - 1))
