"""Too little memory: rewards score in halves and remember what fits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from steer.rewards.base import BaseReward


class Small(BaseReward):
    """Its device holds `room` images."""

    name, batch = "small", 8

    def __init__(self, room: int) -> None:
        self.room = room
        self.seen: list[int] = []

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return images.mean((1, 2, 3)) + torch.tensor([float(len(p)) for p in prompts])


def test_halves_until_it_fits_and_remembers() -> None:
    images, prompts = torch.rand(19, 3, 4, 4), ["a" * k for k in range(19)]
    reward = Small(3)
    found = reward(images, prompts)
    # Means over batches of other sizes: some units in the last place.
    torch.testing.assert_close(found, Small(8)(images, prompts), rtol=1e-6, atol=1e-6)
    assert reward.batch == 2
    reward.seen.clear()
    reward(images, prompts)
    assert max(reward.seen) == 2


def test_one_image_too_many_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Small(0)(torch.rand(3, 3, 4, 4), "a")
