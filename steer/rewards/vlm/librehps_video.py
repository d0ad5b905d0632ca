"""LibreHPS on whole videos: the frames and their size as the authors' scorer has them.

Which frames, in what text, as in the authors' package (PyPI librehps 1.1.2, MIT); what of them is
seen, and at what size, as `Qwen3VLVideoProcessor` does it with the settings of the weights' folder.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from steer.core.errors import CheckpointError, first_line
from steer.rewards.clip.preprocess import work_dtype
from steer.rewards.frames import as_moving
from steer.rewards.inputs import Images
from steer.rewards.models.clip import default_device
from steer.rewards.vlm.librehps import AXES, END, MODEL, START, VIDEO, LibreHpsReward, load
from steer.rewards.vlm.loading import folder_stamps
from steer.rewards.vlm.patches import Patches


NAME = "librehps:video"
FRAMES = 6
"""That the 4B was trained on, and its authors' tests of videos show it."""

ASSUMED = 24.0
"""Frames per second that transformers assumes of frames alone, as the authors' scorer gives it."""

VideoAxis = Literal["overall", "alignment", "coherence", "style", "temporal"]


class LibreHpsVideoReward(LibreHpsReward):
    """The predicted mean of one axis for a video, before the sigmoid; unbounded, differentiable.

    Args:
        model: Qwen3.5 with the head as `multi_axis_head`.
        tokenizer: With the mark.
        processor: The folder's `Qwen3VLVideoProcessor`.
        device: Where it computes.
        axis: One of `AXES`.
        frames: Taken from a video, an even number.
        batch: Most videos scored at once.
    """

    videos = True
    least_frames = 2
    line = NAME
    known = AXES

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        processor: Any,
        device: torch.device,
        *,
        axis: str = "overall",
        frames: int = FRAMES,
        batch: int | None = 1,
    ) -> None:
        if type(frames) is not int or frames < 2 or frames % 2:
            raise ValueError(f"frames={frames!r}: an even number of frames, at least 2")
        super().__init__(model, tokenizer, device, axis=axis, batch=batch)
        self.processor, self.frames = processor, frames
        patches = Patches.from_processor(processor)
        if patches is None:
            raise CheckpointError(
                f"reward {self.name!r}: the folder's video processor ({type(processor).__name__}) "
                "is not as published: pass the published folder"
            )
        self.patches = patches

    def batches(self, images: Images) -> list[Tensor]:
        """Videos as one float tensor `(B, F, 3, H, W)`; ValueError for images."""
        return [as_moving(images, self.name, self.least_frames)]

    def axes(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean and logarithm of the deviation of all axes, `(B, 5, 2)`.

        Args:
            images: Videos, float `(B, F, 3, H, W)` in [0, 1].
            prompts: One per video.
        """
        chosen = images[:, self.chosen(images.shape[1])]
        pixels, grid = self.patches(chosen.to(self.device, work_dtype(self.model.dtype)))
        times = int(grid[0, 0])
        block = f"{START}{VIDEO * (self.patches.tokens(grid) // times)}{END}"
        shown = {"pixel_values_videos": pixels.to(self.model.dtype), "video_grid_thw": grid}
        return self.read(block * times, prompts, shown)

    def chosen(self, count: int) -> list[int]:
        """Which of `count` frames are seen: those that the scorer takes, and of these those that
        the processor takes."""
        taken = spread(count, self.frames)
        if not self.processor.do_sample_frames:
            return taken
        told = VideoMetadata(total_num_frames=len(taken), fps=ASSUMED)
        settings = {"num_frames": self.processor.num_frames, "fps": self.processor.fps}
        return [taken[i] for i in self.processor.sample_frames(told, **settings)]


def spread(count: int, frames: int) -> list[int]:
    """The middles of as many equal parts of a video; all frames where there are no more.

    Args:
        count: Frames of the video.
        frames: Wanted, an even number; of a shorter video the largest even number that it has.
    """
    number = min(frames, count // 2 * 2)
    if number == count:
        return list(range(count))
    step = count / number
    return [round(i * step + step / 2) for i in range(number)]


def librehps_video(
    axis: VideoAxis = "overall",
    *,
    frames: int = FRAMES,
    model: str = MODEL,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 1,
    revision: str | None = None,
) -> LibreHpsVideoReward:
    """LibreHPS for whole videos, motion included.

    The reward `"librehps:video"` is the overall axis, `"librehps:video:temporal"` how natural the
    motion looks; alignment, coherence and style are there too. Differentiable with respect to the
    frames that are seen. Needs transformers 5, which has Qwen3.5.

    Args:
        axis: Which score; by name, what follows the second colon.
        frames: Taken from a video, an even number. The model was trained on 6. Of these, the
            processor sees 4 unless the weights' folder has other settings.
        model: Hub id of another of its versions.
        checkpoint: A local folder in place of the hub.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default bfloat16, whatever the file has, as the authors'.
        batch: Most videos scored at once.
        revision: Commit, tag or branch on the hub; default its main branch.

    Raises:
        ValueError: An unknown axis, an odd number of frames, or `batch` below 1.
        CheckpointError: Weights or settings that cannot be found, read, or do not fit; or
            transformers 4.
    """
    source = os.path.expanduser(checkpoint or model)
    place = default_device(device)
    network, tokenizer = load(source, revision, folder_stamps(source), place, dtype)
    processor = settings_of(source, revision)
    return LibreHpsVideoReward(
        network, tokenizer, processor, place, axis=axis, frames=frames, batch=batch
    )


librehps_video_alignment = functools.partial(librehps_video, "alignment")
librehps_video_coherence = functools.partial(librehps_video, "coherence")
librehps_video_style = functools.partial(librehps_video, "style")
librehps_video_temporal = functools.partial(librehps_video, "temporal")


def settings_of(source: str, revision: str | None) -> Any:
    """The video processor with the settings of a folder or hub id.

    Raises:
        CheckpointError: It has none.
    """
    from transformers import Qwen3VLVideoProcessor

    try:
        return Qwen3VLVideoProcessor.from_pretrained(source, revision=revision or "main")
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(
            f"model {source!r} has no settings of its video processor that can be read "
            f"({type(error).__name__}: {first_line(error)}): pass the published folder whole, or "
            "score frames as images with steer.rewards.PerFrame"
        ) from error
