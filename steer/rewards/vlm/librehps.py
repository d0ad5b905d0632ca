"""LibreHPS: Qwen3.5-4B with a head for five axes of preference, trained on permissive data only.

Layout, chat and head as in the authors' package (PyPI librehps 1.1.2, MIT).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.reading import fingerprint
from steer.rewards.base import BaseReward, check_batch
from steer.rewards.clip.preprocess import work_dtype
from steer.rewards.families import family_of
from steer.rewards.models.clip import default_device
from steer.rewards.vlm.loading import folder_stamps
from steer.rewards.vlm.patches import Patches


NAME = "librehps"
MODEL = "LibreHPS/LibreHPS-4B-v1.1"
AXES = ("overall", "alignment", "coherence", "style", "temporal")
MARK, IMAGE, VIDEO = "<|Reward|>", "<|image_pad|>", "<|video_pad|>"
AREA = 256 * 28 * 28
HALF = (0.5, 0.5, 0.5)
PATCHES = Patches(AREA, AREA, patch=16, mean=HALF, std=HALF)

Axis = Literal["overall", "alignment", "coherence", "style"]

START, END = "<|vision_start|>", "<|vision_end|>"
_BEFORE = "<|im_start|>user\n"
_AFTER = f"<|im_end|>\n<|im_start|>assistant\n{MARK}"


class LibreHpsReward(BaseReward):
    """The predicted mean of one axis, before the sigmoid; unbounded, differentiable.

    Attributes:
        line: Name of the overall axis; the others' have their own behind it.
        known: The axes.

    Args:
        model: Qwen3.5 with the head as `multi_axis_head`.
        tokenizer: With the mark.
        device: Where it computes.
        axis: One of `AXES` but the last, which is of videos (`librehps_video`).
        batch: Most images scored at once.
    """

    differentiable = True
    needs_prompt = True
    line = NAME
    known = AXES[:-1]

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: torch.device,
        *,
        axis: str = "overall",
        batch: int | None = 4,
    ) -> None:
        if axis not in self.known:
            raise ValueError(f"axis={axis!r}: one of {', '.join(map(repr, self.known))}")
        self.name = self.line if axis == "overall" else f"{self.line}:{axis}"
        self.family = family_of(self.name)
        self.model, self.version = model, fingerprint(model)
        self.tokenizer = tokenizer
        self.axis = axis
        self.device = device
        self.batch = check_batch(batch)
        vision = model.config.vision_config
        sizes = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        self.patches = Patches(AREA, AREA, *sizes, HALF, HALF)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt with one of the model's special tokens."""
        for prompt in prompts:
            found = next((token for token in (MARK, IMAGE, VIDEO) if token in prompt), None)
            if found:
                raise ValueError(
                    f"prompt {prompt!r} has {found!r}, a special token of the model: leave it out"
                )

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.axes(images, prompts)[:, AXES.index(self.axis), 0]

    def axes(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean and logarithm of the deviation of all axes, `(B, 5, 2)`.

        The authors show the sigmoid of the mean, and rank by the mean itself. The last axis,
        temporal, says nothing of images.

        Args:
            images: Float `(B, 3, H, W)` in [0, 1].
            prompts: One per image.
        """
        pixels, grid = self.patches(images.to(self.device, work_dtype(self.model.dtype)))
        seen = f"{START}{IMAGE * self.patches.tokens(grid)}{END}"
        shown = {"pixel_values": pixels.to(self.model.dtype), "image_grid_thw": grid}
        return self.read(seen, prompts, shown)

    def read(self, seen: str, prompts: Sequence[str], shown: dict[str, Tensor]) -> Tensor:
        """All axes at the mark, `(B, 5, 2)`.

        Args:
            seen: The place of the image or video in the text, the same in every row.
            prompts: One per row.
            shown: The model's inputs of images or videos.
        """
        self.check_prompts(prompts)
        rows = [self._ids(seen + prompt) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True).to(self.device)
        ends = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        config = self.model.config
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        hidden = self.model.model(
            input_ids=ids,
            attention_mask=(torch.arange(ids.shape[1], device=self.device) <= ends[:, None]).long(),
            mm_token_type_ids=kinds,
            use_cache=False,
            **shown,
        ).last_hidden_state
        read = hidden[torch.arange(len(ids), device=self.device), ends]
        found = self.model.multi_axis_head(read).to(work_dtype(self.model.dtype))
        return found.unflatten(-1, (len(AXES), 2))

    def _ids(self, content: str) -> Tensor:
        whole = f"{_BEFORE}{content}{_AFTER}"
        return torch.tensor(self.tokenizer(whole, add_special_tokens=False).input_ids)


def librehps(
    axis: Axis = "overall",
    *,
    model: str = MODEL,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = 4,
    revision: str | None = None,
) -> LibreHpsReward:
    """LibreHPS: preference by a model whose code, weights and data are all permissive.

    The reward `"librehps"` is the overall axis, `"librehps:alignment"`, `"librehps:coherence"` and
    `"librehps:style"` are others. Images have at most 200,704 pixels, and are enlarged to at least
    that. Needs transformers 5, which has Qwen3.5.

    Args:
        axis: Which score; by name, what follows the colon.
        model: Hub id of another of its versions.
        checkpoint: A local folder in place of the hub.
        device: Default: the accelerator if there is one.
        dtype: Precision of the weights; default bfloat16, whatever the file has, as the authors'.
        batch: Most images scored at once.
        revision: Commit, tag or branch on the hub; default its main branch.

    Raises:
        ValueError: An unknown axis, or `batch` below 1.
        CheckpointError: Weights that cannot be found, read, or do not fit; or transformers 4.
    """
    source = os.path.expanduser(checkpoint or model)
    place = default_device(device)
    network, tokenizer = load(source, revision, folder_stamps(source), place, dtype)
    return LibreHpsReward(network, tokenizer, place, axis=axis, batch=batch)


librehps_alignment = functools.partial(librehps, "alignment")
librehps_coherence = functools.partial(librehps, "coherence")
librehps_style = functools.partial(librehps, "style")


@functools.lru_cache(maxsize=2)
def load(
    source: str,
    revision: str | None,
    _stamps: tuple[Any, ...],
    device: torch.device,
    dtype: torch.dtype | None,
) -> tuple[Any, Any]:
    """The model, frozen, and its tokenizer; once per process for equal arguments.

    Raises:
        CheckpointError: Not found, not readable, or not this layout.
    """
    try:
        with torch.inference_mode(False):
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            loaded: Any = _network_class().from_pretrained(
                source, revision=revision, dtype=dtype or torch.bfloat16, output_loading_info=True
            )
            model, info = loaded
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(
            f"model {source!r} cannot be loaded ({type(error).__name__}: {first_line(error)}): it "
            f"must be a folder or a hub id of {MODEL}'s layout, and transformers 5 or newer; "
            f"where there is a network, run `hf download {source}`, then copy the cache, or pass "
            "checkpoint=FOLDER"
        ) from error
    missing = sorted(info["missing_keys"])
    marked = tokenizer.convert_tokens_to_ids(MARK)
    if missing or marked in (None, tokenizer.unk_token_id):
        what = f"lacks {', '.join(missing[:3])}" if missing else f"has no token {MARK}"
        raise CheckpointError(f"model {source!r} {what}: pass the published folder")
    model = model.eval().requires_grad_(False).to(device)
    return model, tokenizer


def _network_class() -> Any:
    """Qwen3.5 with the head, under the published name."""
    from transformers import Qwen3_5ForConditionalGeneration

    class LibreHps(Qwen3_5ForConditionalGeneration):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.multi_axis_head = Head(config.text_config.hidden_size)
            self.post_init()

    return LibreHps


class Head(nn.Module):
    """Two numbers for each axis; dropout, which only trains, takes its place in the numbering.

    Args:
        width: Of the model.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(width, 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2 * len(AXES)),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """`(B, width)` to `(B, 10)`."""
        return self.proj(hidden)
