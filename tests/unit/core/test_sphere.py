"""Moves on the sphere of the noise's norm: what they keep, exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from steer.core import sphere


quick = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**31)
SHAPES = st.sampled_from([(2,), (3, 5), (4, 3, 3), (2, 2, 3, 3)])
SCALES = st.floats(1e-2, 1e2)


def rows(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3, *shape, generator=generator, dtype=torch.float64)


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


@quick
@given(SEEDS, SHAPES, SCALES)
def test_tangent_is_orthogonal_and_a_projection(
    seed: int, shape: tuple[int, ...], scale: float
) -> None:
    x, g = rows(seed, shape, scale), rows(seed + 1, shape)
    flat = sphere.tangent(x, g)
    inner = (flat * x).flatten(1).sum(1)
    assert (inner.abs() <= 1e-12 * norms(x) * norms(g)).all()
    torch.testing.assert_close(sphere.tangent(x, flat), flat)
    torch.testing.assert_close(flat + (g - flat), g)
    parallel = g - flat  # what was taken away lies along x
    assert sphere.tangent(x, parallel).abs().max() <= 1e-12 * g.abs().max()


@quick
@given(SEEDS, SHAPES, SCALES, st.floats(-3.0, 3.0))
def test_geodesics_keep_the_norm_and_turn_by_the_angle(
    seed: int, shape: tuple[int, ...], scale: float, angle: float
) -> None:
    x = rows(seed, shape, scale)
    way = sphere.tangent(x, rows(seed + 1, shape))
    there = sphere.geodesic(x, way, angle)
    torch.testing.assert_close(norms(there), norms(x))
    turned = torch.full((3,), abs(angle), dtype=torch.float64)
    torch.testing.assert_close(sphere.angles(x, there), turned, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sphere.geodesic(x, torch.zeros_like(x), angle), x)


@quick
@given(SEEDS, SHAPES, SCALES, st.floats(-1.0, 1.0))
def test_neighbours_have_exactly_the_cosine(
    seed: int, shape: tuple[int, ...], scale: float, cosine: float
) -> None:
    x, noise = rows(seed, shape, scale), rows(seed + 1, shape)
    for pivot in (x, x[:1]):
        near = sphere.neighbours(pivot, noise, cosine)
        torch.testing.assert_close(norms(near), norms(pivot).expand(3))
        inner = (near * pivot).flatten(1).sum(1) / norms(pivot) ** 2
        torch.testing.assert_close(
            inner, torch.full((3,), cosine, dtype=torch.float64), rtol=0, atol=1e-12
        )


@quick
@given(SEEDS, SHAPES, SCALES, st.floats(1e-3, 0.5))
def test_steps_keep_the_norm(seed: int, shape: tuple[int, ...], scale: float, size: float) -> None:
    x = rows(seed, shape, scale)
    way = sphere.unit(sphere.tangent(x, rows(seed + 1, shape)))
    there = sphere.step_along(x, way, size)
    torch.testing.assert_close(norms(there), norms(x))
    turned = torch.full((3,), math.atan(size), dtype=torch.float64)
    torch.testing.assert_close(sphere.angles(x, there), turned, rtol=1e-9, atol=1e-9)


@quick
@given(SEEDS, SHAPES, st.floats(0.05, 3.0))
def test_caps_bind_only_outside(seed: int, shape: tuple[int, ...], angle: float) -> None:
    centre, x = rows(seed, shape), rows(seed + 1, shape, 3.0)
    near = sphere.cap(x, centre, angle)
    torch.testing.assert_close(norms(near), norms(x))
    before, after = sphere.angles(x, centre), sphere.angles(near, centre)
    torch.testing.assert_close(after, before.clamp(max=angle), rtol=1e-7, atol=1e-7)
    inside = before <= angle
    assert torch.equal(near[inside], x[inside])


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0)).half()
    assert sphere.radius(x).dtype == torch.float32
    near = sphere.neighbours(x, torch.randn(2, 4, 64, 64), 0.95)
    assert norms(near).tolist() == pytest.approx(norms(x.float()).tolist(), rel=1e-4)


def test_zero_rows_stay() -> None:
    zero = torch.zeros(2, 4)
    assert torch.equal(sphere.unit(zero), zero)
    x = torch.ones(2, 4)
    assert torch.equal(sphere.geodesic(x, zero, 0.3), x)
    assert torch.equal(sphere.step_along(x, sphere.unit(zero), 0.3), x)


def test_norm_scores_of_noise_are_standard() -> None:
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(2000, 4, 8, 8, generator=generator)
    scores = torch.tensor([sphere.norm_score(noise) for noise in noises])
    assert abs(float(scores.mean())) < 0.1 and float(scores.std()) == pytest.approx(1, abs=0.07)
    exact = torch.ones(4, 8, 8)
    assert sphere.norm_score(exact) == pytest.approx(0)
    assert sphere.norm_score(2 * exact) == pytest.approx(3 / math.sqrt(2 / 256))
