"""That a corrected draw has the ratio of the densities."""

from __future__ import annotations

import pytest
import torch
from families import seeded

from steer.core.types import Move
from steer.search.kernels.draws import Draw


def test_the_correction_is_the_ratio_of_densities() -> None:
    mean, other, noise = torch.randn(3, 5, 2, 3, 3, generator=seeded(1)).double().unbind(0)
    draw = Draw(Move(mean, 0.7, mean), Move(other, 0.9, mean))
    x, ratio = draw.sample(noise)
    assert ratio is not None
    torch.testing.assert_close(x, other + 0.9 * noise)
    base = torch.distributions.Normal(mean, 0.7).log_prob(x).flatten(1).sum(1)
    proposed = torch.distributions.Normal(other, 0.9).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(ratio, base - proposed)
    taken = draw.take([3, 3, 0]).sample(noise[[3, 3, 0]])
    torch.testing.assert_close(taken[0], x[[3, 3, 0]])


def test_moves_without_noise() -> None:
    mean = torch.zeros(2, 1)
    still, noisy = Move(mean, 0.0, mean), Move(mean + 1, 0.5, mean)
    x, ratio = Draw(still, noisy).sample(torch.ones(2, 1))
    assert torch.equal(x, mean) and ratio is None
    with pytest.raises(ValueError, match="no weight can correct"):
        Draw(noisy, still)
    half = Move(mean.half(), 0.5, mean)
    assert Draw(half, half).sample(torch.ones(2, 1))[0].dtype == torch.float16
