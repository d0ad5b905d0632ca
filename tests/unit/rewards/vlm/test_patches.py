"""Patches against the image processor of transformers that they restate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from steer.rewards.vlm.patches import Patches


EIGHT_BITS = 1.2 / 255 / 0.26  # a rounding for each axis, in units of the smallest std


def eight_bit(*shape: int) -> Tensor:
    """Smooth pictures, so that no overshoot is cut between the two axes of the resize."""
    noise = torch.Generator().manual_seed(0)
    small = 0.1 + 0.8 * torch.rand(math.prod(shape[:-2]), 3, 4, 6, generator=noise)[:, :1]
    large = torch.nn.functional.interpolate(small, shape[-2:], mode="bilinear")
    return (large.reshape(shape) * 255).round() / 255


def array(image: Tensor) -> np.ndarray:
    return (image * 255).round().byte().movedim(-3, -1).numpy()


@pytest.mark.parametrize(
    ("height", "width"), [(84, 112), (100, 77), (20, 20), (300, 400), (60, 640), (3, 200)]
)
def test_an_image_becomes_what_the_processor_makes_of_it(height, width):
    processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=200 * 200)
    patches = Patches.from_processor(processor)
    assert patches is not None
    images = eight_bit(2, 3, height, width)
    expected = processor([Image.fromarray(array(x)) for x in images], return_tensors="pt")
    pixels, grid = patches(images)
    assert torch.equal(grid, expected["image_grid_thw"])
    assert pixels.shape == expected["pixel_values"].shape
    assert (pixels - expected["pixel_values"]).abs().max() < EIGHT_BITS


def test_other_normalisations_and_patches_are_read_off_the_processor():
    processor = Qwen2VLImageProcessor(
        patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_pixels=1024, max_pixels=65536
    )
    patches = Patches.from_processor(processor)
    assert patches == Patches(1024, 65536, 16, 2, 2, (0.5,) * 3, (0.5,) * 3)


def test_a_video_becomes_what_the_video_processor_makes_of_it():
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112 * 4}
    processor = Qwen2VLVideoProcessor(size=sizes, do_sample_frames=False)
    video = eight_bit(4, 3, 112, 84)
    expected = processor([array(video)], return_tensors="pt", do_resize=False)
    pixels, grid = Patches()(video[None])
    assert torch.equal(grid, expected["video_grid_thw"])
    assert torch.allclose(pixels, expected["pixel_values_videos"], atol=1e-5)


def test_the_last_frame_fills_the_last_patch():
    video = eight_bit(1, 3, 3, 56, 56)
    longer = torch.cat([video, video[:, -1:]], 1)
    assert all(map(torch.equal, Patches()(video), Patches()(longer)))


def test_processors_that_do_something_else_are_not_restated():
    assert Patches.from_processor(Qwen2VLImageProcessor(do_resize=False)) is None
    assert Patches.from_processor(Qwen2VLImageProcessor(resample=2)) is None
    assert Patches.from_processor(object()) is None


def test_elongated_images_are_refused():
    with pytest.raises(ValueError, match=r"2 x 500 pixels: .* at most 200 times"):
        Patches()(torch.zeros(1, 3, 2, 500))
