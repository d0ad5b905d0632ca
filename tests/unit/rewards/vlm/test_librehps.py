"""LibreHPS on a tiny random folder of the published layout, against its restatement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import vlm_models
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2VLImageProcessor

from steer.core.errors import CheckpointError
from steer.rewards.names import BUILT_IN
from steer.rewards.vlm.librehps import AXES, librehps


transformers = pytest.importorskip("transformers", minversion="5.0")
PROMPTS = ["a red circle", "a blue square left of a red circle"]
MARK = "<|Reward|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the authors' class saves itself: Qwen3.5's names, two heads, and a copy of a row."""
    path = tmp_path_factory.mktemp("librehps")
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
    return path


def images(count: int, size: int = 448) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    small = 0.1 + 0.8 * torch.rand(count, 3, 4, 6, generator=noise)
    large = torch.nn.functional.interpolate(small, (size, size), mode="bilinear")
    return (large * 255).round() / 255


def expected(folder: Path, picture: Tensor, prompt: str) -> Tensor:
    """`(5, 2)` by transformers' own image processor and model, one image, its own positions."""
    model = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(folder).eval()
    weights = load_file(folder / "model.safetensors")
    half = [0.5] * 3
    area = 256 * 28 * 28
    processor = Qwen2VLImageProcessor(
        patch_size=16, image_mean=half, image_std=half, min_pixels=area, max_pixels=area
    )
    array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    seen = processor([Image.fromarray(array)], return_tensors="pt")
    pad = "<|image_pad|>" * (int(seen["image_grid_thw"].prod()) // 4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = f"<|im_start|>user\n<|vision_start|>{pad}<|vision_end|>{prompt}<|im_end|>\n"
    ids = tokenizer(text + f"<|im_start|>assistant\n{MARK}", return_tensors="pt").input_ids
    kinds = (ids == vlm_models.token("<|image_pad|>")).int()
    with torch.no_grad():
        output = model(input_ids=ids, mm_token_type_ids=kinds, output_hidden_states=True, **seen)
    x = output.hidden_states[-1][0, ids[0] == tokenizer.convert_tokens_to_ids(MARK)][0]
    for layer in (0, 3, 5):
        name = f"multi_axis_head.proj.{layer}"
        x = weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]
        x = x.relu() if layer < 5 else x
    return x.reshape(5, 2)


def test_scores_are_the_restatements(folder):
    reward, pictures = librehps(checkpoint=folder, device="cpu"), images(2)
    both = torch.stack([expected(folder, x, p) for x, p in zip(pictures, PROMPTS, strict=True)])
    assert torch.allclose(reward.axes(pictures, PROMPTS), both, rtol=1e-3, atol=1e-3)
    assert both[0].sub(both[1]).abs().min() > 1e-3
    for index, axis in enumerate(AXES[:-1]):
        one = librehps(axis, checkpoint=folder, device="cpu")
        assert one.name in BUILT_IN and one.family == "vlm/human"
        assert torch.allclose(one(pictures, PROMPTS), both[:, index, 0], rtol=1e-3, atol=1e-3)


def test_images_have_a_gradient(folder):
    pictures = images(2, 256).requires_grad_()
    librehps(checkpoint=folder, device="cpu")(pictures, PROMPTS).sum().backward()
    assert (pictures.grad.flatten(1).norm(dim=1) > 0).all()


def test_bad_input_and_folders_that_are_not_it(folder, tmp_path):
    reward = librehps(checkpoint=folder, device="cpu")
    with pytest.raises(ValueError, match=r"has '<\|Reward\|>', a special token"):
        reward(images(1), f"a {MARK}")
    with pytest.raises(ValueError, match="axis='temporal': one of 'overall'"):
        librehps("temporal", checkpoint=folder, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="`hf download nobody/nothing`"):
        librehps(model="nobody/nothing", device="cpu")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    bare = {name: t for name, t in state.items() if not name.startswith("multi_axis_head")}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks multi_axis_head\.proj"):
        librehps(checkpoint=tmp_path, device="cpu")
