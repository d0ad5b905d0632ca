"""Initial latents: what a pipeline draws for further particles, of one prompt and of several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from steer.core.errors import UnsupportedPipelineError
from steer.core.seeds import row_seed
from steer.driver.noise import Source, can_widen


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


class Noised:
    """A pipeline that encodes an image and has a function that noises it (Kandinsky 2.1)."""

    scheduler = DDIMScheduler()

    def prepare_latents(
        self, latents: Tensor, latent_timestep: Tensor, shape: Any, generator: Any
    ) -> Tensor:
        assert latents.shape == shape and len(latent_timestep) == len(latents)
        return latents + randn_tensor(shape, generator)

    def __call__(self, prompt: Any = None, strength: float = 0.8) -> None: ...


def test_a_given_image_is_noised_anew_for_further_particles() -> None:
    image = 10 * torch.ones(2, 4, 2, 2)
    source = Source(Noised(), prompts=1, images=2, lane_width=1, seeds=SEEDS[:1])
    source.lane = source(image, torch.ones(2), (2, 4, 2, 2), torch.Generator().manual_seed(0))
    assert source.prepare is not None and not can_widen(Noised())
    drawn = source.draw([0, 3], [0])
    own = torch.Generator().manual_seed(row_seed(SEEDS[0], 3))
    assert torch.equal(drawn.x[0], source.lane[0])
    assert torch.equal(drawn.x[1], image[0] + torch.randn(4, 2, 2, generator=own))
