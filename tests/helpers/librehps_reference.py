"""LibreHPS restated in transformers' own classes, on a tiny random folder of its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
import vlm_models
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor


MARK = "<|Reward|>"
HALF = [0.5] * 3


def save(path: Path, **videos: Any) -> Path:
    """As the authors' class saves itself: Qwen3.5's names, two heads, and a copy of a row.

    Args:
        path: A folder.
        **videos: Settings of the video processor that differ from transformers' own.
    """
    torch.manual_seed(0)
    tokenizer = vlm_models.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
    text: dict[str, Any] = {**vlm_models.SMALL, "num_key_value_heads": 2, "head_dim": 16}
    text |= {"vocab_size": len(tokenizer), "layer_types": ["linear_attention", "full_attention"]}
    text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "tie_word_embeddings": True}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}
    text["rope_parameters"] = {**rope, "partial_rotary_factor": 0.25}
    vision: dict[str, Any] = {"depth": 1, "hidden_size": 32, "intermediate_size": 64}
    vision |= {"num_heads": 2, "out_hidden_size": 32, "patch_size": 16}
    ids = {f"{k}_token_id": vlm_models.token(f"<|{k}_pad|>") for k in ("image", "video")}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, **ids)
    config.tie_word_embeddings = True
    model = transformers.Qwen3_5ForConditionalGeneration(config)
    head = nn.Sequential(
        nn.Linear(32, 1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 16), nn.ReLU()
    )
    model.multi_axis_head = nn.Module()
    model.multi_axis_head.proj = nn.Sequential(*head, nn.Linear(16, 10))
    model.scalar_head = nn.Module()
    model.scalar_head.proj = nn.Linear(32, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    Qwen3VLVideoProcessor(image_mean=HALF, image_std=HALF, **videos).save_pretrained(path)
    return path


def expected(folder: Path, picture: Tensor, prompt: str) -> Tensor:
    """`(5, 2)` of one image, by transformers' own image processor."""
    area = 256 * 28 * 28
    processor = Qwen2VLImageProcessor(
        patch_size=16, image_mean=HALF, image_std=HALF, min_pixels=area, max_pixels=area
    )
    seen = processor([Image.fromarray(_levels(picture))], return_tensors="pt")
    pads = "<|image_pad|>" * (int(seen["image_grid_thw"].prod()) // 4)
    return _read(folder, f"<|vision_start|>{pads}<|vision_end|>{prompt}", seen)


def expected_of_frames(folder: Path, frames: Tensor, prompt: str) -> Tensor:
    """`(5, 2)` of one video `(F, 3, H, W)`, by the folder's video processor, as the authors' scorer
    calls it: with the frames alone."""
    processor = Qwen3VLVideoProcessor.from_pretrained(folder)
    pictures = [Image.fromarray(_levels(frame)) for frame in frames]
    seen = processor(videos=[pictures], return_tensors="pt")
    time, rows, columns = seen["video_grid_thw"][0].tolist()
    pads = "<|video_pad|>" * (rows * columns // 4)
    blocks = "<|vision_end|><|vision_start|>".join([pads] * time)
    return _read(folder, f"<|vision_start|>{blocks}<|vision_end|>{prompt}", seen)


def _levels(picture: Tensor) -> Any:
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()


def _read(folder: Path, content: str, seen: Any) -> Tensor:
    """The head at the mark, one row, the model's own positions."""
    model = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(folder).eval()
    weights = load_file(folder / "model.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n{MARK}"
    ids = tokenizer(text, return_tensors="pt").input_ids
    kinds = sum(
        n * (ids == vlm_models.token(f"<|{k}_pad|>")) for n, k in ((1, "image"), (2, "video"))
    )
    with torch.no_grad():
        output = model(input_ids=ids, mm_token_type_ids=kinds, output_hidden_states=True, **seen)
    x = output.hidden_states[-1][0, ids[0] == tokenizer.convert_tokens_to_ids(MARK)][0]
    for layer in (0, 3, 5):
        name = f"multi_axis_head.proj.{layer}"
        x = weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]
        x = x.relu() if layer < 5 else x
    return x.reshape(5, 2)
