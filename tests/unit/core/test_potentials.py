"""Potentials: their formulas written out, and the product that every path must come to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from steer.core.potentials import POTENTIALS, Memory, finish


def literal(name: str, rewards: list[float], scale: float) -> list[float]:
    """Log G_1, ..., log G_S of one path, from the definitions."""
    found = []
    for s in range(len(rewards)):
        so_far = rewards[: s + 1]
        match name:
            case "difference":
                value = rewards[s] - (rewards[s - 1] if s else 0.0)
            case "max":
                value = max(so_far)
            case "sum":
                value = sum(so_far)
            case _:
                value = rewards[s]
        found.append(scale * value)
    return found


@pytest.mark.parametrize("name", POTENTIALS)
@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=6),
    st.floats(0, 4),
)
def test_formulas_and_product(name: str, path: list[list[float]], scale: float) -> None:
    """Three particles side by side; the rewards' scale is that of the definitions."""
    factor, memory = torch.full((1, 1), scale, dtype=torch.float64), Memory.blank(1, 3)
    increments = []
    for rewards in path:
        tensor = torch.tensor([rewards], dtype=torch.float64)
        log_g, memory = POTENTIALS[name](tensor, factor, memory)
        increments.append(log_g[0])
    for particle in range(3):
        expected = literal(name, [rewards[particle] for rewards in path], scale)
        got = [float(log_g[particle]) for log_g in increments]
        assert got == pytest.approx(expected, abs=1e-9)
    final = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    log_g, memory = finish(final, factor, memory)
    product = torch.stack([*increments, log_g[0]]).sum(0)
    torch.testing.assert_close(product, scale * final[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(memory.total, scale * final, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", POTENTIALS)
def test_memory_follows_ancestors(name: str) -> None:
    """A child is weighted as if its ancestor's past were its own."""

    def run(path: list[Tensor], ancestors: Tensor) -> Tensor:
        one, memory = torch.ones(2, 1, dtype=torch.float64), Memory.blank(2, 3)
        for rewards in path:
            _, memory = POTENTIALS[name](rewards, one, memory)
        return finish(path[0], one, memory.take(ancestors))[0]

    path = [torch.randn(2, 3, dtype=torch.float64) for _ in range(3)]
    ancestors = torch.tensor([[2, 2, 0], [1, 1, 1]])
    stay = torch.arange(3).expand(2, 3)
    unmoved = run(path, stay)
    expected = path[0] - (path[0] - unmoved).gather(1, ancestors)
    torch.testing.assert_close(run(path, ancestors), expected)
