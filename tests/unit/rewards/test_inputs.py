"""Images and prompts at the edge: what is accepted, and what is refused with which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import steer
from steer.core.errors import NotFiniteError
from steer.rewards.inputs import as_batches


def redness(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))


@pytest.fixture
def reward():
    return steer.reward(redness)


def picture(value=(255, 0, 0), size=(6, 4), mode="RGB") -> Image.Image:
    return Image.new("RGB", size, value).convert(mode)


@pytest.mark.parametrize(
    "images",
    [
        torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 4, 6),
        torch.tensor([255, 0, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 4, 6),
        torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 4, 6).half(),
        picture(),
        [picture()],
        np.asarray(picture()),
        np.asarray(picture())[None],
        np.asarray(picture(mode="RGBA"))[None],
        [np.asarray(picture())],
        np.asarray(picture())[None] / 255.0,
        [torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 4, 6)],
    ],
)
def test_accepted_forms_score_alike(reward, images):
    scores = reward(images, "red")
    assert scores.dtype == torch.float32
    assert scores.tolist() == [1.0]


def test_gray_is_repeated():
    gray = np.full((4, 6), 51, np.uint8)
    for form in (gray, gray[..., None], Image.fromarray(gray), [Image.fromarray(gray)]):
        (batch,) = as_batches(form)
        assert batch.shape == (1, 3, 4, 6)
        assert torch.allclose(batch, torch.full_like(batch, 0.2))


def test_several_sizes_keep_their_order(reward):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [picture(c, (4 + i, 4)) for i, c in enumerate(colours)]
    assert reward(pictures, ["a", "b", "c"]).tolist() == [1.0, -1.0, 0.0]


def test_gradient_passes_the_edge(reward):
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    reward(images, "x").sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 8, 8), r"shape \(3, 8, 8\).*images\[None\]"),
        (torch.rand(2, 8, 8, 3), r"channels come first.*permute"),
        (torch.rand(2, 1, 8, 8), r"repeat the gray channel"),
        (torch.rand(2, 4, 8, 8), r"latents, decode them first"),
        (torch.rand(2, 16, 8, 8), r"latents, decode them first"),
        (torch.rand(0, 3, 8, 8), r"at least one image"),
        (torch.rand(1, 3, 0, 8), r"shape \(1, 3, 0, 8\): no pixels"),
        (torch.rand(2, 2, 8, 8), r"shape \(2, 2, 8, 8\).*one RGB image per row"),
        (torch.rand(1, 3, 2, 8, 8), r"shape \(1, 3, 2, 8, 8\).*PerFrame"),
        (torch.full((1, 3, 8, 8), float("inf")), r"values in \[inf, inf\]"),
        (np.zeros((0, 8, 8, 3)), r"at least one image"),
        (np.zeros((2, 0, 8, 3)), r"no pixels"),
        (np.zeros((1, 8, 8, 2)), r"numpy array of shape \(1, 8, 8, 2\).*C = 1, 3 or 4"),
        (np.zeros((1, 8, 8, 3), dtype=object), r"numpy array of object: pass floats"),
        (np.zeros((1, 8, 8, 3), dtype=np.uint16), r"dtype torch.uint16"),
        (Image.new("RGB", (0, 4)), r"size \(0, 4\): it has no pixels"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 0))], r"size \(4, 0\)"),
        (torch.rand(1, 3, 8, 8) * 2 - 1, r"\[-1, 1\]: pass \(images \+ 1\) / 2"),
        (torch.rand(1, 3, 8, 8) * 255, r"0\.\.255: pass images / 255"),
        (torch.randn(1, 3, 8, 8) * 900, r"rescale to \[0, 1\]"),
        (torch.ones(1, 3, 8, 8, dtype=torch.int64), r"dtype torch.int64"),
        (np.zeros((1, 3, 8, 8)), r"channels-last"),
        ([], r"images=\[\]"),
        ((), r"images=\[\]"),
        ("picture.png", r"images=str"),
        (None, r"images=NoneType"),
        (["picture.png"], r"holds a str"),
    ],
)
def test_refused_images(reward, images, message):
    with pytest.raises(ValueError, match=message):
        reward(images, "x")


def test_small_overshoot_is_fine(reward):
    reward(torch.tensor([-0.05, 0.5, 1.05])[None, :, None, None].expand(1, 3, 4, 4), "x")


@pytest.mark.parametrize("as_list", [False, True])
def test_nan_pixels_name_the_image(reward, as_list):
    images = torch.rand(3, 3, 4, 4)
    images[1, 0, 2, 2] = float("nan")
    with pytest.raises(NotFiniteError, match=r"images\[1\] has NaN pixels.*float16") as caught:
        reward([*images] if as_list else images, "x")
    assert caught.value.index == 1
    images[2] = 40  # out of range as well: the NaN is named first
    with pytest.raises(NotFiniteError, match=r"images\[1\]"):
        reward(images, "x")


def test_lists_may_hold_batches(reward):
    images = torch.rand(5, 3, 4, 4)
    assert torch.equal(reward([images[:2], images[2], images[3:]], "x"), reward(images, "x"))
    images[4] = float("nan")
    with pytest.raises(NotFiniteError, match=r"images\[4\]"):
        reward([images[:2], images[2], images[3:]], "x")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pil_modes_of_another_range(reward, mode):
    for form in (Image.new(mode, (4, 4)), [Image.new(mode, (4, 4))]):
        with pytest.raises(ValueError, match=rf"mode '{mode}', whose range is not 0\.\.255"):
            reward(form, "x")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "HSV"])
def test_pil_modes_that_convert(reward, mode):
    (batch,) = as_batches(picture(mode="RGB").convert(mode))
    expected = np.array(picture().convert(mode).convert("RGB")) / np.float32(255)
    np.testing.assert_allclose(batch[0].permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], r"len\(prompts\)=0 for 2 images"),
        (["a"], r"len\(prompts\)=1 for 2 images"),
        (["a", "b", "c"], r"len\(prompts\)=3 for 2 images"),
        (["a", None], r"prompts\[1\]=None"),
        (None, r"prompts=None"),
    ],
)
def test_refused_prompts(reward, prompts, message):
    with pytest.raises(ValueError, match=message):
        reward(torch.rand(2, 3, 4, 4), prompts)


def test_pictures_are_turned_as_their_exif_says():
    top_red = np.zeros((4, 6, 3), np.uint8)
    top_red[:2, :, 0] = 255
    turned, exif = Image.fromarray(top_red), Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    turned.getexif().update(exif)
    for form in (turned, [turned]):
        (batch,) = as_batches(form)
        assert batch.shape == (1, 3, 6, 4)
        assert batch[0, 0, :, 2:].min() == 1 and not batch[0, 0, :, :2].any()
    assert turned.size == (6, 4)
