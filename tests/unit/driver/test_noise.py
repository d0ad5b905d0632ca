"""Initial latents: what a pipeline draws for further particles, of one prompt and of several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.seeds import row_seed
from steer.driver.noise import Source


SEEDS = (11, 22)


class Picky:
    """A pipeline that starts from images, and draws with a single generator only."""

    scheduler = DDIMScheduler()

    def __init__(self, fails_for_one: bool = False) -> None:
        self.fails_for_one = fails_for_one

    def prepare_latents(self, image: Tensor, batch_size: int, generator: Any) -> Tensor:
        if isinstance(generator, list) or (self.fails_for_one and batch_size == 1):
            raise RuntimeError("cannot reshape tensor of 0 elements")
        noise = torch.randn(batch_size, 4, 2, 2, generator=generator)
        return noise + image.expand(batch_size, -1, -1, -1)

    def __call__(self, prompt: Any = None, strength: float = 0.8) -> None: ...


def source_of(pipe: Any, image: Tensor) -> Source:
    """A source after the plain call's own draw."""
    source = Source(pipe, prompts=2, images=1, lane_width=1, seeds=SEEDS)
    source.lane = source(image, 2, torch.Generator().manual_seed(0))
    return source


@pytest.mark.parametrize("rows", [1, 2])
def test_prompts_are_drawn_one_by_one_where_a_list_of_generators_fails(rows: int) -> None:
    image = 10 * torch.arange(float(rows)).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)
    drawn = source_of(Picky(), image).draw([3], [0, 1])
    assert drawn.ids == ((0, 3), (1, 3))
    for prompt, seed in enumerate(SEEDS):
        noise = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(row_seed(seed, 3)))
        assert torch.equal(drawn.x[prompt], noise + image[prompt % rows])


def test_what_cannot_be_drawn_for_several_prompts_is_refused_with_the_reason() -> None:
    source = source_of(Picky(fails_for_one=True), torch.zeros(1, 4, 2, 2))
    with pytest.raises(UnsupportedPipelineError, match=r"0 elements\): call it with one prompt"):
        source.draw([3], [0, 1])
