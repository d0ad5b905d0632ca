"""LibreHPS on whole videos, on a tiny random folder, against the authors' way in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librehps_reference as reference
import pytest
import torch
from librehps_reference import HALF
from torch import Tensor

import steer
from steer.core.errors import CheckpointError
from steer.rewards.names import BUILT_IN
from steer.rewards.registry import resolve
from steer.rewards.vlm.librehps import AXES
from steer.rewards.vlm.librehps_video import librehps_video, spread
from steer.rewards.vlm.patches import Patches


transformers = pytest.importorskip("transformers", minversion="5.0")
PROMPTS = ["a red circle", "a blue square left of a red circle"]
MIDDLES = [1, 2, 4, 5, 7, 8]
"""Of six equal parts of nine frames."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(tmp_path_factory.mktemp("librehps"))


def make(folder: Path, *axis: Any, **options: Any) -> Any:
    settings = {"device": "cpu", "dtype": torch.float32, **options}
    return librehps_video(*axis, checkpoint=folder, **settings)


def videos(count: int, length: int = 9, height: int = 192, width: int = 256) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    small = 0.1 + 0.8 * torch.rand(count * length, 3, 4, 6, generator=noise)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    return (large * 255).round().div(255).unflatten(0, (count, length))


def test_scores_are_the_restatements(folder):
    reward, shown = make(folder, batch=2), videos(2)
    pairs = zip(shown[:, MIDDLES], PROMPTS, strict=True)
    both = torch.stack([reference.expected_of_frames(folder, x, p) for x, p in pairs])
    assert torch.allclose(reward.axes(shown, PROMPTS), both, rtol=1e-3, atol=1e-3)
    assert both[0].sub(both[1]).abs().min() > 1e-3
    for index, axis in enumerate(AXES):
        one = make(folder, axis)
        assert one.name in BUILT_IN and one.family == "vlm/human"
        assert torch.allclose(one(shown, PROMPTS), both[:, index, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(480, 832), (72, 120)], ids=["reduced", "enlarged"])
def test_sizes_are_the_processors(folder, size):
    """The processor rounds to 8 bits after each axis of the resize, which steer does not."""
    shown = videos(1, 6, *size)
    found = make(folder).axes(shown, PROMPTS[:1])[0]
    wanted = reference.expected_of_frames(folder, shown[0], PROMPTS[0])
    assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("size", [(480, 832), (72, 120), (192, 256), (64, 2048), (33, 47)])
@pytest.mark.parametrize("frames", [2, 4, 6, 16])
def test_bounds_are_of_all_frames_together(size, frames):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    processor = transformers.Qwen3VLVideoProcessor(image_mean=HALF, image_std=HALF)
    patches = Patches.from_processor(processor)
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    wanted = smart_resize(frames, *size, factor=32, min_pixels=least, max_pixels=most)
    assert patches and patches.size(*size, frames) == wanted


def test_a_folder_with_other_settings_has_them_used(tmp_path):
    folder = reference.save(tmp_path, do_sample_frames=False, size=_area(4096, 6 * 96 * 96))
    reward, shown = make(folder), videos(1, height=96, width=96)
    assert reward.chosen(9) == MIDDLES
    wanted = reference.expected_of_frames(folder, shown[0, MIDDLES], PROMPTS[0])
    assert torch.allclose(reward.axes(shown, PROMPTS[:1])[0], wanted, rtol=1e-3, atol=1e-3)


def _area(least: int, most: int) -> dict[str, int]:
    return {"shortest_edge": least, "longest_edge": most}


@pytest.mark.parametrize(
    ("count", "frames", "taken"),
    [
        (81, 6, [7, 20, 34, 47, 61, 74]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (5, 6, [1, 2, 3, 4]),
        (3, 6, [1, 2]),
        (2, 8, [0, 1]),
    ],
)
def test_frames_are_the_middles_of_equal_parts(count, frames, taken):
    assert spread(count, frames) == taken
    assert max(spread(count, frames)) < count


def test_frames_that_are_seen_have_a_gradient(folder):
    reward, shown = make(folder), videos(1).requires_grad_()
    reward(shown, "a").sum().backward()
    norms = shown.grad[0].flatten(1).norm(dim=1)
    assert (norms > 0).nonzero().flatten().tolist() == reward.chosen(9) == [1, 4, 5, 8]


def test_by_name_alive_and_for_video_pipelines_only(folder):
    made = steer.reward("librehps:video:temporal", device="cpu", checkpoint=folder)
    assert made.name == "librehps:video:temporal" and resolve(made, videos=True) is made
    with pytest.raises(ValueError, match="judges the motion of videos, and images are to be"):
        resolve(made)
    with pytest.raises(ValueError, match=r"pass videos .* of two frames or more"):
        made(torch.zeros(2, 3, 64, 64), "a")


def test_bad_options_and_folders(folder, tmp_path):
    with pytest.raises(ValueError, match="axis='motion': one of 'overall'"):
        make(folder, "motion")
    with pytest.raises(ValueError, match="frames=5: an even number"):
        make(folder, frames=5)
    with pytest.raises(ValueError, match=r"has '<\|video_pad\|>', a special token"):
        make(folder)(videos(1), "a <|video_pad|>")
    for file in folder.iterdir():
        if "preprocessor" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="no settings of its video processor"):
        make(tmp_path)
