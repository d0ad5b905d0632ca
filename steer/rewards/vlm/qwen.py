"""Qwen2-VL with a head that reads scores at special tokens, from one published checkpoint file.

The token positions are 0, 1, 2, ... on all three of Qwen's axes: the authors' classes (VideoAlign,
HPSv3) hand the language model embeddings without positions, and it then counts them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

from steer.core.errors import CheckpointError, first_line
from steer.core.weights.hub import locate
from steer.core.weights.reading import load_into, load_state_dict, stamp
from steer.rewards.clip.preprocess import work_dtype
from steer.rewards.models.clip import default_device
from steer.rewards.vlm.names import head_and_backbone
from steer.rewards.vlm.patches import Patches


TOKENIZER = "qwen2-vl-tokenizer"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"

_ROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
_TEXT = {"num_hidden_layers": 28, "rms_norm_eps": 1e-6, "rope_parameters": _ROPE}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "2b": {
        "text": {
            **_TEXT,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
        },
        "vision": {"hidden_size": 1536},
    },
    "7b": {
        "text": {
            **_TEXT,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        "vision": {"hidden_size": 3584},
    },
}
"""Qwen2-VL's published sizes, as differences from the defaults of `Qwen2VLConfig`."""

_BEFORE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
)
_BETWEEN, _AFTER = "<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Head:
    """What tells one published reward on Qwen2-VL from another.

    Attributes:
        size: One of `SIZES`.
        marks: Special tokens in the text, in order; a score is read at each.
        layers: Widths between the model's and the output's, with ReLUs behind them.
        outputs: Numbers per mark.
        bias: Whether the layers have one.
        prefix: Of the head's names in the file.
        lora_scale: By how much low-rank updates in the file are multiplied; 0 where there are none.
    """

    size: str
    marks: tuple[str, ...]
    layers: tuple[int, ...]
    outputs: int
    bias: bool
    prefix: str = "rm_head."
    lora_scale: float = 0.0

    def build(self, width: int) -> nn.Module:
        """The head; dropout, which only trains, takes its place in the numbering."""
        if not self.layers:
            return nn.Linear(width, self.outputs, bias=self.bias)
        parts: list[nn.Module] = []
        for index, (before, after) in enumerate(
            zip((width, *self.layers), self.layers, strict=False)
        ):
            parts += [nn.Linear(before, after, bias=self.bias), nn.ReLU()]
            parts += [nn.Dropout(0.05)] if index == 0 else []
        return nn.Sequential(*parts, nn.Linear(self.layers[-1], self.outputs, bias=self.bias))


class QwenScorer(nn.Module):
    """Qwen2-VL without its vocabulary's last layer, and a head, in float32 or better.

    Args:
        config: Of the model.
        head: Of the reward.
    """

    def __init__(self, config: Qwen2VLConfig, head: Head) -> None:
        super().__init__()
        self.backbone = Qwen2VLModel(config)
        self.head = head.build(config.get_text_config().hidden_size)

    def forward(
        self, ids: Tensor, mask: Tensor, seen: Mapping[str, Tensor], marks: Tensor
    ) -> Tensor:
        """`(B, marks, outputs)` scores.

        Args:
            ids: `(B, L)` token ids, padded on the right.
            mask: `(B, L)`, 1 where there is a token.
            seen: Patches and grid, in the model's names.
            marks: Ids of the marks; every row has each of them once, in this order.
        """
        places = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = self.backbone(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, **seen
        ).last_hidden_state
        read = hidden[torch.isin(ids, marks)].unflatten(0, (len(ids), len(marks)))
        return self.head(read.to(next(self.head.parameters()).dtype))


@dataclass(frozen=True)
class Loaded:
    """A scorer, ready for use.

    Attributes:
        scorer: The network.
        tokenizer: With the marks added.
        marks: Their ids.
        patches: Preprocessing of the images.
        video: Whether it looks at videos.
        text: The fixed text; `{prompt}` stands where the prompt goes.
        device: Where it computes.
        dtype: Precision of the backbone.
    """

    scorer: QwenScorer
    tokenizer: PreTrainedTokenizerFast
    marks: Tensor
    patches: Patches
    video: bool
    text: str
    device: torch.device
    dtype: torch.dtype

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt with one of the model's special tokens."""
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        for prompt in prompts:
            found = next((token for token in special if token in prompt), None)
            if found:
                raise ValueError(
                    f"prompt {prompt!r} has {found!r}, a special token of the model: leave it out"
                )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`(B, marks, outputs)` of images `(B, 3, H, W)` or videos `(B, F, 3, H, W)` in [0, 1]."""
        self.check_prompts(prompts)
        pixels, grid = self.patches(images.to(self.device, work_dtype(self.dtype)))
        tokens = (VIDEO if self.video else IMAGE) * self.patches.tokens(grid)
        rows = [self._ids(tokens, prompt) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        names = ("pixel_values_videos", "video_grid_thw")
        names = names if self.video else ("pixel_values", "image_grid_thw")
        seen = dict(zip(names, (pixels.to(self.dtype), grid), strict=True))
        return self.scorer(ids.to(self.device), mask.to(self.device), seen, self.marks)

    def _ids(self, tokens: str, prompt: str) -> Tensor:
        text = self.text.replace("{prompt}", prompt)
        whole = f"{_BEFORE}{tokens}{_BETWEEN}{text}{_AFTER}"
        return torch.tensor(self.tokenizer(whole, add_special_tokens=False).input_ids)


def open_qwen(
    name: str,
    head: Head,
    patches: Patches,
    text: str,
    *,
    video: bool = False,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    model_config: Mapping[str, Mapping[str, Any]] | None = None,
) -> Loaded:
    """A scorer from a published file, or from a local one of its layout.

    Args:
        name: Of the published file in `steer.core.weights.hub.FILES`.
        head: The file's head.
        patches: Preprocessing; `patch`, `merge` and `depth` are those of the model.
        text: The fixed text.
        video: Whether it looks at videos.
        checkpoint, tokenizer, device, dtype, revision, model_config: As for `hpsv3`.

    Raises:
        ValueError: An unknown part in `model_config`.
        CheckpointError: Weights or a tokenizer that cannot be found, read, or do not fit.
    """
    config = {part: dict(values) for part, values in (model_config or {}).items()}
    if not config.keys() <= {"vision", "text"}:
        raise ValueError(f"model_config has the parts {sorted(config)}: 'vision' and 'text' only")
    weights = locate(name, checkpoint, revision=revision)
    words = locate(TOKENIZER, tokenizer, option="tokenizer")
    stamps = (stamp(weights), stamp(words))
    source = Source(weights, words, json.dumps(config, sort_keys=True), stamps, head)
    place = default_device(device)
    scorer, found = load_scorer(source, place, dtype)
    vision: Any = scorer.backbone.config.vision_config
    sizes = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    return Loaded(
        scorer,
        found,
        torch.tensor(found.convert_tokens_to_ids(list(head.marks)), device=place),
        Patches(patches.least, patches.most, *sizes),
        video,
        text,
        place,
        scorer.backbone.dtype,
    )


@dataclass(frozen=True)
class Source:
    """Where a scorer comes from; equal sources share one loaded model.

    Attributes:
        weights: The checkpoint file.
        tokenizer: A `tokenizer.json`.
        config: `model_config` as JSON.
        stamps: Sizes and times of the two, so that rewritten files are loaded again.
        head: The layers at the marks.
    """

    weights: str
    tokenizer: str
    config: str
    stamps: tuple[tuple[int, int], ...]
    head: Head


@functools.lru_cache(maxsize=2)
def load_scorer(
    source: Source, device: torch.device, dtype: torch.dtype | None
) -> tuple[QwenScorer, PreTrainedTokenizerFast]:
    """The network, frozen, and its tokenizer; once per process for equal arguments.

    Raises:
        CheckpointError: Weights or a tokenizer that cannot be read, or do not fit.
    """
    words = _tokenizer(source.tokenizer, source.head.marks)
    with torch.inference_mode(False):
        state = load_state_dict(source.weights)
        head, backbone = head_and_backbone(state, source.head.prefix, source.head.lora_scale)
        scorer = _empty(source, words)
        load_into(scorer.backbone, backbone, repr(source.weights), assign=True)
        load_into(scorer.head, head, repr(source.weights), assign=True)
        precision = dtype or backbone["language_model.embed_tokens.weight"].dtype
        scorer = scorer.eval().requires_grad_(False).to(device, precision)
        scorer.head.to(work_dtype(precision))
    return scorer, words


def _empty(source: Source, words: PreTrainedTokenizerFast) -> QwenScorer:
    """The network without weights; buffers are computed."""
    config, sizes = json.loads(source.config), SIZES[source.head.size]
    try:
        text = sizes["text"] | {"vocab_size": len(words)} | config.get("text", {})
        text["rope_scaling"] = text["rope_parameters"]  # its name in transformers 4
        vision = sizes["vision"] | config.get("vision", {})
        tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO}
        ids: dict[str, Any] = {
            key: words.convert_tokens_to_ids(mark) for key, mark in tokens.items()
        }
        with init_empty_weights(include_buffers=False):
            return QwenScorer(
                Qwen2VLConfig(text_config=text, vision_config=vision, **ids), source.head
            )
    except Exception as error:  # whatever odd values make transformers' own code raise
        raise CheckpointError(
            f"no model can be built from model_config={config!r} for {source.weights!r} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def _tokenizer(path: str, marks: Sequence[str]) -> PreTrainedTokenizerFast:
    way_out = "pass the tokenizer.json of Qwen/Qwen2-VL-7B-Instruct"
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"tokenizer={path!r} cannot be read ({first_line(error)}): {way_out}"
        ) from error
    if not {IMAGE, VIDEO} <= tokenizer.get_vocab().keys():
        raise CheckpointError(f"tokenizer={path!r} has no {IMAGE} or {VIDEO}: {way_out}")
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    return tokenizer
