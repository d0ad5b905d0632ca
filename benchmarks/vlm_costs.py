"""What does a score by a vision-language model cost? Parameters and FLOPs at published sizes.

    python benchmarks/vlm_costs.py

Nothing is loaded and nothing computed: models are built on the meta device from their published
settings, and torch counts the operations of one forward pass. Tokens of the fixed texts are counted
with CLIP's vocabulary, Qwen's own being elsewhere; they are a tenth of the pass or less.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import common
import open_clip
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import (
    CLIPConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLModel,
)

from steer.core.meter import FlopCounter
from steer.rewards.models.mps import TOWERS, MpsNetwork
from steer.rewards.vlm import hpsv3, librehps, prompts, videoreward
from steer.rewards.vlm.patches import Patches
from steer.rewards.vlm.qwen import SIZES
from steer.rewards.vlm.vqa import QUESTION


PROMPT = "a red circle left of a blue square"
SIDE = 512
SECONDS, FPS = 5, 16
WRITTEN = 50
"""Tokens that UnifiedReward writes."""

IMAGE, VIDEO, WORD = 1, 2, 3
"""Ids of the tokens; any will do."""

PIXELS = ("pixel_values", "pixel_values_videos")
GRIDS = ("image_grid_thw", "video_grid_thw")
"""Names of the inputs, of images and of videos."""

IDS: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": VIDEO}
NEWER = Patches(least=256 * 256, most=4096 * 4096, patch=16)
PLAIN = Patches(least=56 * 56, most=12_845_056)
TOGETHER = replace(librehps.PATCHES, least=128 * 32 * 32, most=768 * 32 * 32, together=True)
"""Of LibreHPS's videos, where the weights' folder has transformers' own settings."""

SEEN = 4
"""Frames of a video that LibreHPS sees, likewise."""

_QWEN25 = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
}
_QWEN25_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN3 = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5e6},
}
_QWEN3_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "out_hidden_size": 2560,
    "deepstack_visual_indexes": [5, 11, 17],
}
_QWEN35 = {
    "hidden_size": 2560,
    "intermediate_size": 9216,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 248320,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [11, 11, 10],
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
    },
}
_QWEN35_VISION = {key: _QWEN3_VISION[key] for key in _QWEN3_VISION if "deepstack" not in key}


@dataclass(frozen=True)
class Line:
    """One reward at one size.

    Attributes:
        reward: Its name.
        model: Behind it.
        shown: What is scored.
        parameters: Of the network, without the last layer over the vocabulary where it is not used
            or shares the first one's weights.
        bf16_gb: Of the weights in bfloat16, 10^9 bytes.
        vision_tokens: Of the image or video.
        text_tokens: Of the fixed text and the prompt, by CLIP's vocabulary.
        tflop: Of one score.
        vision_tflop: Of that, the vision tower's.
    """

    reward: str
    model: str
    shown: str
    parameters: int
    bf16_gb: float
    vision_tokens: int
    text_tokens: int
    tflop: float
    vision_tflop: float


class OnMeta(TorchDispatchMode):
    """Lets small tensors with values (grids, masks, positions) meet weights without them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen: list[Tensor] = []
        tree_map(lambda x: seen.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
        if not any(x.is_meta for x in seen):
            return func(*args, **(kwargs or {}))
        moved = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, (args, kwargs))
        return func(*moved[0], **(moved[1] or {}))


def count(model: nn.Module, *args: Any, **inputs: Any) -> float:
    """TFLOP of a forward pass on the meta device."""
    counter = FlopCounter()
    with torch.no_grad(), counter, OnMeta():
        model(*args, **inputs)
    return counter.total / 1e12


def qwen(
    reward: str, name: str, model: Any, patches: Patches, text: str, *, frames: int = 0
) -> Line:
    """A score by one of Qwen's models: one pass over the image or video, the text and the marks."""
    inputs = asked(patches, text, frames)
    pixels, grid = inputs[PIXELS[bool(frames)]].to("meta"), inputs[GRIDS[bool(frames)]]
    seen = patches.tokens(grid)
    whole = count(model, **{**inputs, PIXELS[bool(frames)]: pixels})
    vision = count(model.visual, pixels, grid_thw=grid)
    size = sum(p.numel() for p in model.parameters())
    shown = f"{frames} of {SECONDS * FPS} frames" if frames else f"{SIDE} px"
    read = inputs["input_ids"].shape[1] - seen
    return Line(reward, name, shown, size, size * 2e-9, seen, read, whole, vision)


def asked(patches: Patches, text: str, frames: int = 0) -> dict[str, Any]:
    """The inputs of one score: a grey image, or a video of so many frames, and the text."""
    shape = (1, frames, 3, SIDE, SIDE) if frames else (1, 3, SIDE, SIDE)
    pixels, grid = patches(torch.zeros(shape))
    kind = VIDEO if frames else IMAGE
    ids = torch.tensor([[WORD] * 15 + [kind] * patches.tokens(grid) + [WORD] * tokens(text)])
    places = torch.arange(ids.shape[1]).expand(3, 1, -1)
    inputs = {PIXELS[bool(frames)]: pixels, GRIDS[bool(frames)]: grid}
    return {"input_ids": ids, "position_ids": places, "use_cache": False, **inputs}


def tokens(text: str) -> int:
    words: Any = open_clip.get_tokenizer("ViT-H-14")
    return len(words.encode(text.replace("{prompt}", PROMPT)))


def empty(kind: Any, config: Any) -> Any:
    """A model without weights, and without its look at where the image's tokens are: their places
    have no values here, and filling them in is no matrix product."""
    with init_empty_weights(include_buffers=False):
        model = kind(config).eval()
    if hasattr(model, "get_placeholder_mask"):
        model.get_placeholder_mask = _anywhere
    if hasattr(getattr(model, "language_model", None), "_deepstack_process"):
        model.language_model._deepstack_process = lambda hidden, places, features: hidden
    return model


def _anywhere(ids: Tensor, inputs_embeds: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    mask = torch.ones_like(inputs_embeds, dtype=torch.bool)
    return mask, mask


def qwen2(size: str) -> tuple[Any, Any]:
    """Class and settings of a Qwen2-VL."""
    text = SIZES[size]["text"] | {"vocab_size": 151660}
    vision = SIZES[size]["vision"]
    return Qwen2VLModel, Qwen2VLConfig(text_config=text, vision_config=vision, **IDS)


def qwen25() -> tuple[Any, Any]:
    """Class and settings of Qwen2.5-VL-3B."""
    config = Qwen2_5_VLConfig(text_config=_QWEN25, vision_config=_QWEN25_VISION, **IDS)
    return Qwen2_5_VLModel, config


def qwen3() -> tuple[Any, Any]:
    """Class and settings of Qwen3-VL-4B."""
    config = Qwen3VLConfig(text_config=_QWEN3, vision_config=_QWEN3_VISION, **IDS)
    return Qwen3VLModel, config


def qwen35() -> tuple[Any, Any]:
    """Class and settings of Qwen3.5-4B, which transformers has since version 5."""
    from transformers import Qwen3_5Config, Qwen3_5Model

    return Qwen3_5Model, Qwen3_5Config(text_config=_QWEN35, vision_config=_QWEN35_VISION, **IDS)


def lines() -> list[Line]:
    """All of them."""
    three, four, newest = empty(*qwen25()), empty(*qwen3()), empty(*qwen35())
    chosen = len(videoreward.frames(SECONDS * FPS, FPS))
    found = [
        qwen("vqa", "Qwen2.5-VL-3B", three, PLAIN, QUESTION),
        qwen("vqa", "Qwen3-VL-4B", four, NEWER, QUESTION),
        qwen("unifiedreward", "Qwen3-VL-4B", four, NEWER, prompts.read("unifiedreward")),
        qwen(
            "hpsv3",
            "Qwen2-VL-7B",
            empty(*qwen2("7b")),
            Patches(hpsv3.AREA, hpsv3.AREA),
            prompts.read("hpsv3"),
        ),
        qwen("librehps", "Qwen3.5-4B", newest, librehps.PATCHES, "{prompt}"),
        qwen("librehps:video", "Qwen3.5-4B", newest, TOGETHER, "{prompt}", frames=SEEN),
        qwen(
            "videoreward",
            "Qwen2-VL-2B",
            empty(*qwen2("2b")),
            videoreward.PATCHES,
            prompts.read("videoreward"),
            frames=chosen,
        ),
        mps(),
    ]
    return [written(line, four) if line.reward == "unifiedreward" else line for line in found]


def written(line: Line, model: Any) -> Line:
    """With one pass of one token for each that is written, and the last layer over the vocabulary
    (looking back at what came before is left out)."""
    text = model.language_model
    one = sum(p.numel() for n, p in text.named_parameters() if p.ndim == 2 and "embed" not in n)
    one += text.embed_tokens.weight.numel()
    return Line(**{**asdict(line), "tflop": line.tflop + WRITTEN * 2 * one / 1e12})


def mps() -> Line:
    config = CLIPConfig(
        text_config=TOWERS["text"], vision_config=TOWERS["vision"], projection_dim=1024
    )
    network = empty(lambda c: MpsNetwork(c, 16, 64), config)
    pixels, words = (
        torch.zeros(1, 3, 224, 224, device="meta"),
        torch.zeros(1, 77, 1024, device="meta"),
    )
    image = count(network, pixels, words, torch.ones(1, 77, dtype=torch.bool, device="meta"))
    text = FlopCounter()
    with torch.no_grad(), text, OnMeta():
        network.words(torch.ones(1, 77, dtype=torch.long))
    size = sum(p.numel() for p in network.parameters())
    whole = image + text.total / 1e12
    return Line("mps", "CLIP ViT-H/14", "224 px", size, size * 2e-9, 257, 77, whole, image)


def table(found: list[Line]) -> str:
    """For docs/rewards/vlm.md."""
    rows = [
        "| reward | model | scored | parameters | weights in bf16 | tokens seen + read "
        "| TFLOP per score |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| `{x.reward}` | {x.model} | {x.shown} | {x.parameters / 1e9:.2f} B "
        f"| {x.bf16_gb:.1f} GB | {x.vision_tokens} + {x.text_tokens} | {x.tflop:.2f} |"
        for x in found
    ]
    return "\n".join(rows)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "vlm_costs.jsonl")
    args = parser.parse_args()
    found = lines()
    head = json.dumps(common.provenance())
    args.out.write_text("\n".join([head, *(json.dumps(asdict(line)) for line in found)]) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
