"""JPEG rewards against Pillow's own files on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import steer
from steer.rewards.models.compressibility import compressibility, incompressibility


def kilobytes(array: np.ndarray, path) -> float:
    Image.fromarray(array).save(path, quality=95)
    return path.stat().st_size / 1000


@settings(max_examples=30, deadline=None)
@given(array=arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_size_is_that_of_the_file(tmp_path_factory, array):
    expected = kilobytes(array, tmp_path_factory.mktemp("jpeg") / "image.jpg")
    for images in (array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)[None]):
        assert incompressibility()(images, "").item() == pytest.approx(expected, rel=1e-6)
        assert compressibility()(images, "").item() == pytest.approx(-expected, rel=1e-6)


def test_floats_are_rounded_to_8_bits(tmp_path):
    images = torch.rand(3, 3, 24, 32)
    levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    expected = [kilobytes(array, tmp_path / "image.jpg") for array in levels]
    assert incompressibility(batch=2)(images, "").tolist() == pytest.approx(expected, rel=1e-6)
    overshoot = torch.tensor([-0.2, 1.2]).repeat(16).expand(1, 3, 8, 32)
    cut = incompressibility()(overshoot.clamp(0, 1), "")
    assert torch.equal(incompressibility()(overshoot, ""), cut)


def test_smooth_images_are_the_compressible_ones():
    rows = torch.linspace(0, 1, 64).expand(3, 64, 64)
    images = torch.stack([torch.full((3, 64, 64), 0.5), rows, torch.rand(3, 64, 64)])
    smooth, busy = compressibility()(images, ""), incompressibility()(images, "")
    assert smooth.argsort(descending=True).tolist() == [0, 1, 2]
    assert torch.equal(smooth, -busy)


def test_declared():
    smooth, busy = steer.reward("compressibility"), steer.reward("incompressibility", batch=4)
    for reward in (smooth, busy):
        assert not reward.differentiable and not reward.needs_prompt
    assert (smooth.name, smooth.range) == ("compressibility", (-float("inf"), 0.0))
    assert (busy.name, busy.range, busy.batch) == ("incompressibility", (0.0, float("inf")), 4)
    scores = smooth(torch.rand(2, 3, 9, 9, requires_grad=True), "")
    assert scores.dtype == torch.float32 and not scores.requires_grad


def test_bad_inputs():
    with pytest.raises(ValueError, match="batch=0"):
        steer.reward("compressibility", batch=0)
    with pytest.raises(ValueError, match="checkpoint"):
        steer.reward("compressibility", checkpoint="x.pt")
    with pytest.raises(ValueError, match=r"they look like 0\.\.255"):
        steer.reward("compressibility")(torch.rand(1, 3, 8, 8) * 255, "")
    images = torch.rand(3, 3, 8, 8)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"images\[1\] has NaN pixels"):
        steer.reward("compressibility")(images, "")
