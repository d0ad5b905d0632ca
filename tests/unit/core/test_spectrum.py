"""`whiten`: white noise stays, cheats go, conjugates keep together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from steer.core.spectrum import whiten
from steer.core.sphere import radius, renormalise


SHAPES = [(2, 4, 16, 16), (2, 3, 5, 9, 12), (2, 192, 16), (2, 300), (2, 4, 15, 7)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("block", [16, 64, 256])
def test_white_noise_moves_by_one_over_the_root_of_twice_the_block(block: int) -> None:
    x = noise(8, 4, 64, 64)
    moved = float((radius(whiten(x, block) - x) / radius(x)).mean())
    assert moved == pytest.approx(1 / math.sqrt(2 * block), rel=0.12)  # .044 at 256


@pytest.mark.parametrize("block", [1, 3, 16, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_a_projection(shape: tuple[int, ...], block: int) -> None:
    once = whiten(noise(*shape), block)
    assert once.shape == shape
    torch.testing.assert_close(whiten(once, block), once, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        radius(once).flatten(), radius(once).new_full((2,), once[0].numel()).sqrt()
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_it_takes_the_norms_of_other_noise(shape: tuple[int, ...]) -> None:
    x, like = noise(*shape), noise(*shape, seed=1)
    found = whiten(3.0 * x, 16, like)
    torch.testing.assert_close(radius(found), radius(like))
    torch.testing.assert_close(whiten(like, 16, found), like)  # it is as they are already
    torch.testing.assert_close(whiten(x, 10**6, like), renormalise(x, radius(like)))


def test_a_low_frequency_is_cut_to_its_block_and_the_sphere_leaves_it() -> None:
    """A sinusoid of amplitude 3 on 64 x 64: 9216 in either of its bins, where white noise has 1."""
    wave = 3.0 * torch.sin(math.tau * torch.arange(64, dtype=torch.float64) / 64)
    x = noise(1, 1, 64, 64) + wave

    def power(of: Tensor) -> float:
        return float(torch.fft.fft2(of, norm="ortho")[0, 0, 0, 1].abs() ** 2)

    assert power(x) == pytest.approx(9216, rel=0.1)
    assert power(whiten(x, 64)) == pytest.approx(32, rel=0.02)
    assert power(whiten(x, 16)) == pytest.approx(8, rel=0.15)
    assert power(whiten(x, 10**6)) == pytest.approx(1675, rel=0.1)


def test_small_channels_are_one_block_with_the_others() -> None:
    x = noise(3, 16, 1, 1)
    torch.testing.assert_close(whiten(x, 64), renormalise(x, torch.tensor(4.0)))


def test_zeros_stay_and_half_precision_is_widened() -> None:
    assert not whiten(torch.zeros(1, 4, 16, 16), 64).any()
    assert whiten(noise(1, 4, 16, 16).half(), 64).dtype == torch.float32
