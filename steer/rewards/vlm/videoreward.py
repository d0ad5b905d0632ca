"""VideoReward (VideoAlign): visual quality, motion quality and text alignment of a video.

Liu et al. 2025 (arXiv:2501.13918); prompt, sampling of frames, preprocessing and head as the
reference implementation (github.com/KwaiVGI/VideoAlign, commits 1140ffd and 3e5ebc6).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from steer.core.weights.reading import fingerprint
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.families import family_of
from steer.rewards.frames import as_moving
from steer.rewards.inputs import Images
from steer.rewards.vlm import prompts as texts
from steer.rewards.vlm.patches import Patches
from steer.rewards.vlm.qwen import Head, Loaded, open_qwen


NAME = "videoreward"
AXES = ("vq", "mq", "ta")
MEANS = (3.6757, 1.1646, 2.8105)
DEVIATIONS = (2.2476, 1.3811, 2.5121)
"""Of the three axes, as `inference_config` in the published `model_config.json` has them."""

PER_SECOND = 2.0
"""Frames that are looked at."""

LEAST_FRAMES, MOST_FRAMES = 4, 768
PATCHES = Patches(least=128 * 28 * 28, most=256 * 28 * 28)
HEAD = Head(
    "2b",
    marks=("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"),
    layers=(),
    outputs=1,
    bias=False,
    lora_scale=128 / 64,
)

Axis = Literal["sum", "vq", "mq", "ta"]


class VideoReward(BaseReward):
    """The sum of the three z-scores, or one of them; unbounded, differentiable.

    Args:
        loaded: The model.
        axis: `"vq"` (visual quality), `"mq"` (motion quality), `"ta"` (text alignment), or their
            `"sum"`.
        fps: Frames per second of the videos.
        batch: Most videos scored at once.
    """

    videos = True
    least_frames = 2
    differentiable = True
    needs_prompt = True

    def __init__(
        self, loaded: Loaded, *, axis: Axis = "sum", fps: float = 16.0, batch: int | None = 1
    ) -> None:
        if axis not in ("sum", *AXES):
            raise ValueError(f"axis={axis!r}: one of {', '.join(map(repr, ('sum', *AXES)))}")
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps={fps!r}: frames per second of the videos, a positive number")
        self.name = NAME if axis == "sum" else f"{NAME}:{axis}"
        self.family = family_of(self.name)
        self.loaded, self.version = loaded, fingerprint(loaded.scorer)
        self.axis: Axis = axis
        self.fps = fps
        self.device = loaded.device
        self.batch = check_batch(batch)

    def batches(self, images: Images) -> list[Tensor]:
        """Videos as one float tensor `(B, F, 3, H, W)`; ValueError for images."""
        return [as_moving(images, self.name, self.least_frames)]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt with one of the model's special tokens."""
        self.loaded.check_prompts(prompts)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        found = self.axes(images, prompts)
        return found.sum(1) if self.axis == "sum" else found[:, AXES.index(self.axis)]

    def axes(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """The z-scores `(B, 3)` of visual quality, motion quality and text alignment.

        Args:
            videos: Float `(B, F, 3, H, W)` in [0, 1].
            prompts: One per video.
        """
        chosen = videos[:, frames(videos.shape[1], self.fps)]
        raw = self.loaded(chosen, prompts)[..., 0]
        return (raw - raw.new_tensor(MEANS)) / raw.new_tensor(DEVIATIONS)


def frames(count: int, fps: float) -> list[int]:
    """Which of a video's frames are looked at: `PER_SECOND`, evenly, the first and the last too."""
    wanted = min(max(count / fps * PER_SECOND, LEAST_FRAMES), min(MOST_FRAMES, count // 2 * 2))
    number = min(round(wanted / 2) * 2, count)
    return torch.linspace(0, count - 1, number).round().long().tolist()


def videoreward(
    axis: Axis = "sum",
    *,
    fps: float = 16.0,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 1,
    revision: str | None = None,
    model_config: Mapping[str, Mapping[str, Any]] | None = None,
) -> VideoReward:
    """VideoReward: how good a video is for its prompt, by people's choices between videos.

    The reward `"videoreward"` is the sum of three z-scores, `"videoreward:vq"`, `"videoreward:mq"`
    and `"videoreward:ta"` are the three. Differentiable with respect to the frames.

    Args:
        axis: Which score; by name, what follows the colon.
        fps: Frames per second at which the videos play; two frames per second are looked at, and
            at least four.
        checkpoint: A local `model.pth` or `.safetensors` with the published names; default the
            published file (5.03 GB), through the Hugging Face cache.
        tokenizer: A local `tokenizer.json` of Qwen/Qwen2-VL-7B-Instruct; default the published one.
        device: Default: the accelerator if there is one.
        dtype: Precision of Qwen; default the stored one. The head is in float32.
        batch: Most videos scored at once.
        revision: Commit, tag or branch of the weights; default the pinned commit.
        model_config: As for `hpsv3`.

    Raises:
        ValueError: An unknown axis, `fps` that is not positive, an unknown part in `model_config`,
            or `batch` below 1.
        CheckpointError: Weights or a tokenizer that cannot be found, read, or do not fit.
    """
    loaded = open_qwen(
        NAME,
        HEAD,
        PATCHES,
        texts.read(NAME),
        video=True,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        revision=revision,
        model_config=model_config,
    )
    return VideoReward(loaded, axis=axis, fps=fps, batch=batch)


videoreward_vq = functools.partial(videoreward, "vq")
videoreward_mq = functools.partial(videoreward, "mq")
videoreward_ta = functools.partial(videoreward, "ta")
