"""What the pages and examples are run with: small random models in place of the downloads."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import pytest
import torch
from families import build
from families.modular import classic_of
from torch import Tensor
from tuned_pairs import adapted, save_lora

from steer.driver.denoisers.checkpoints import source
from steer.driver.denoisers.checkpoints.known import KNOWN
from steer.rewards import names
from steer.rewards.function import FunctionReward


TINY_HPS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def controlled(controlnet: Any, **more: Any) -> Any:
    """A ControlNet pipeline of the small SD's parts."""
    parts = build("sd").components
    return diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=controlnet)


def inpainting(**more: Any) -> Any:
    return diffusers.StableDiffusionInpaintPipeline(**build("sd").components)


STAND_INS: dict[str, Callable[..., Any]] = {
    "StableDiffusionPipeline": lambda **_: build("sd"),
    "StableDiffusionXLPipeline": lambda **_: build("sdxl"),
    "StableDiffusion3Pipeline": lambda **_: build("sd3"),
    "FluxPipeline": lambda **_: build("flux"),
    "QwenImagePipeline": lambda **_: classic_of("qwen"),
    "WanPipeline": lambda **_: build("wan"),
    "StableDiffusionControlNetPipeline": controlled,
    "StableDiffusionInpaintPipeline": inpainting,
    "ControlNetModel": lambda **_: diffusers.ControlNetModel.from_unet(
        build("sd").unet, conditioning_embedding_out_channels=(4, 8)
    ),
}
"""By class: what `from_pretrained` returns in its place."""


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hub ids are small random models, a card is the CPU, and no video is encoded."""
    torch.manual_seed(0)
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": open_clip.CLIP(**TINY_HPS).state_dict()}, file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: TINY_HPS)
    monkeypatch.setattr(names, "_load", load_reward)
    monkeypatch.setattr(source, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(source, "snapshot_download", lambda *_, **__: lora_folder(tmp_path))
    for name, make in STAND_INS.items():
        family = getattr(diffusers, name)
        monkeypatch.setattr(family, "from_pretrained", stand_in(family, make))
        monkeypatch.setattr(family, "to", lambda self, *_, **__: self)
    for family in (diffusers.FluxPipeline, diffusers.QwenImagePipeline):
        monkeypatch.setattr(family, "enable_model_cpu_offload", lambda self, *_, **__: None)
    for name in STAND_INS:
        family = getattr(diffusers, name)
        if issubclass(family, diffusers.DiffusionPipeline):
            monkeypatch.setattr(family, "__call__", hurried(family.__call__))
    for family, size in SMALL.items():
        monkeypatch.setattr(family, "__call__", small(family.__call__, size))
    monkeypatch.setattr(diffusers.utils, "export_to_video", lambda frames, path, fps: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lora_folder(place: Path) -> Path:
    """A LoRA of the small SDXL, under the name of the published one."""
    folder = place / "lora"
    pipe, name = build("sdxl"), KNOWN["spo-sdxl-lora"].file
    assert name is not None
    save_lora(pipe, *adapted(pipe), folder).rename(folder / name)
    return folder


SMALL: dict[Any, dict[str, int]] = {
    diffusers.WanPipeline: {"height": 16, "width": 16, "num_frames": 5},
    diffusers.StableDiffusionControlNetPipeline: {"height": 16, "width": 16},
    diffusers.QwenImagePipeline: {"height": 16, "width": 16},
}


def small(call: Any, size: dict[str, int]) -> Any:
    """A pipeline's call whose images are small, whatever it is asked for."""

    @functools.wraps(call)
    def smaller(*args: Any, **more: Any) -> Any:
        return call(*args, **{**more, **size})

    return smaller


MOST_STEPS = 10


def hurried(call: Any) -> Any:
    """A pipeline's call of few steps, whatever it is asked for."""
    usual = inspect.signature(call).parameters["num_inference_steps"].default

    @functools.wraps(call)
    def sooner(*args: Any, **more: Any) -> Any:
        asked = more.pop("num_inference_steps", usual)
        return call(*args, **more, num_inference_steps=min(asked, MOST_STEPS))

    return sooner


def stand_in(family: Any, make: Callable[..., Any]) -> Any:
    real = family.from_pretrained

    def from_pretrained(name: str | Path, **more: Any) -> Any:
        if Path(name).exists():  # the bundled world
            return real(name, **more)
        made = make(**more)
        assert isinstance(made, family)
        made.default_sample_size = 8  # Flux has one for all its models
        return made

    return from_pretrained


IN_THE_PACKAGE = {
    "compressibility",
    "hpsv2",
    "reward",
    "shapes",
    "shapes_vqa",
    "registry",
    "presets",
}
"""Modules of rewards that run as they are: nothing is downloaded, or `offline` has it in small."""


def load_reward(place: str) -> Callable[..., Any]:
    """The factory of a name; where it would load large weights, one that takes the same options."""
    module, _, attribute = place.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    if module.rpartition(".")[2] in IN_THE_PACKAGE:
        return factory
    signature = inspect.signature(factory)

    def make(*args: Any, **options: Any) -> FunctionReward:
        signature.bind(*args, **options)
        of_videos = module.endswith(("videoreward", "librehps_video"))
        return FunctionReward(whole_brightness if of_videos else brightness, name=attribute)

    make.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return make


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.flatten(1).mean(1)


def whole_brightness(videos: Tensor, prompts: Sequence[str]) -> Tensor:
    assert videos.ndim == 5
    return videos.flatten(1).mean(1)


whole_brightness.videos = True  # pyright: ignore[reportFunctionMemberAccess]
