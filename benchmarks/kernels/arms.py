"""The scorers that are compared: images on a device to CLIP scores there.

Every arm gets the same float images `(B, 3, H, W)` in [0, 1] and the same cached text features, so
none pays for text, files or copies to the host; all have equal weights, rounded to their type.

| arm | what it is |
|---|---|
| eager | open_clip's modules, PyTorch's resize on the device |
| eager-fp16 | the same in float16 |
| compiled | `eager` under `torch.compile(max-autotune)`: searched products, CUDA graphs |
| transformers | transformers' CLIP with `scaled_dot_product_attention` |
| xformers | transformers' CLIP with xformers' `memory_efficient_attention` |
| torchao-fp8 | transformers' CLIP, torchao's FP8 with row scales, `torch.compile(max-autotune)` |
| fused | `steer.rewards.clip.tower` with CUDA graphs |
| fused-no-graphs | the same without them |
| fp8 | the same with graphs and FP8 products |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels import models
from benchmarks.kernels.clock import reason
from steer.rewards.clip.preprocess import Preprocess
from steer.rewards.clip.tower import VitTower


Score = Callable[[Tensor, Tensor], Tensor]
Encode = Callable[[Tensor], Tensor]

OURS = ("fused", "fused-no-graphs", "fp8")
BASELINES = ("eager", "eager-fp16", "compiled", "transformers", "xformers", "torchao-fp8")
NAMES = (*BASELINES, *OURS)


@dataclass(frozen=True)
class Arm:
    """One way to score.

    Attributes:
        name: One of `NAMES`.
        score: Images `(B, 3, H, W)` and unit texts `(B, D)` to cosines `(B,)`.
        dtype: Name of the precision: of the weights, or "fp8".
        differentiable: Whether gradients reach the images.
        memory: Which call shows its memory: the "first", where our graphs are recorded; the
            "second", where compiled ones are; or a "later" one.
    """

    name: str
    score: Score
    dtype: str
    differentiable: bool = True
    memory: str = "later"


@dataclass(frozen=True)
class Setting:
    """What all arms are made of.

    Attributes:
        model: Name of the open_clip model.
        device: Where everything runs.
        dtype: Precision of all arms that do not name their own.
        checkpoint: Weights, or None for random ones.
    """

    model: str
    device: torch.device
    dtype: torch.dtype
    checkpoint: Any = None

    def build(self, dtype: torch.dtype | None = None) -> Any:
        """The open_clip model in `dtype`."""
        return models.build(self.model, self.device, dtype or self.dtype, self.checkpoint)


def by_encoder(encode: Encode, model: Any, dtype: torch.dtype) -> Score:
    """PyTorch's resize on the device, an image encoder of `model`'s size, a cosine."""
    device = model.visual.conv1.weight.device
    pixels = models.pixels_of(models.preprocess_of(model), device)

    def score(images: Tensor, texts: Tensor) -> Tensor:
        features = encode(pixels(images).to(dtype))
        return (F.normalize(features.to(texts.dtype), dim=-1) * texts).sum(-1)

    return score


def by_open_clip(model: Any, dtype: torch.dtype) -> Score:
    """open_clip's own modules."""
    return by_encoder(model.encode_image, model, dtype)


def by_transformers(model: Any, dtype: torch.dtype, attention: str = "sdpa") -> tuple[Any, Score]:
    """transformers' modules, and the score by them."""
    made = models.in_transformers(model, attention)
    score = by_encoder(lambda x: made(x).image_embeds, model, dtype)
    return made, score


def by_tower(tower: VitTower, preprocess: Preprocess) -> Score:
    """The fused tower."""
    return lambda images, texts: tower.scores(tower.patches(images, preprocess), texts)


def plain_tower(model: Any) -> Score:
    """The fused tower as plain autograd, to be recorded as part of a larger graph."""
    tower, preprocess = VitTower(model, graphs=False), models.preprocess_of(model)

    def score(images: Tensor, texts: Tensor) -> Tensor:
        return tower.head(tower.trunk(tower.patches(images, preprocess)), texts)

    return score


def compiled(function: Callable[..., Any], mode: str = "max-autotune") -> Callable[..., Any]:
    """`torch.compile` in its best form: static shapes, searched matrix products, CUDA graphs."""
    settings: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    setattr(settings, name, 1024)  # one entry per shape and mode
    made = torch.compile(function, mode=mode, dynamic=False)

    def call(*inputs: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return made(*inputs)

    return call


def xformers_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """xformers' attention as transformers calls one: `(B, heads, T, D)` in, `(B, T, ...)` out."""
    ops: Any = import_module("xformers.ops")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return ops.memory_efficient_attention(q, k, v, scale=options.get("scaling")), None


def _eager(setting: Setting) -> Arm:
    return Arm("eager", by_open_clip(setting.build(), setting.dtype), _name(setting.dtype))


def _eager_fp16(setting: Setting) -> Arm:
    score = by_open_clip(setting.build(torch.float16), torch.float16)
    return Arm("eager-fp16", score, "float16")


def _compiled(setting: Setting) -> Arm:
    score = compiled(by_open_clip(setting.build(), setting.dtype))
    return Arm("compiled", score, _name(setting.dtype), memory="second")


def _transformers(setting: Setting) -> Arm:
    _, score = by_transformers(setting.build(), setting.dtype)
    return Arm("transformers", score, _name(setting.dtype))


def _xformers(setting: Setting) -> Arm:
    from transformers import AttentionInterface

    AttentionInterface.register("steer_xformers", xformers_attention)
    _, score = by_transformers(setting.build(), setting.dtype, "steer_xformers")
    return Arm("xformers", score, _name(setting.dtype))


def _torchao(setting: Setting) -> Arm:
    quantization: Any = import_module("torchao.quantization")
    made, score = by_transformers(setting.build(torch.bfloat16), torch.bfloat16)
    rule = quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow())
    quantization.quantize_(made.vision_model, rule)
    return Arm("torchao-fp8", compiled(score), "fp8", differentiable=False, memory="second")


def _ours(setting: Setting, name: str) -> Arm:
    dtype = torch.bfloat16 if name == "fp8" and setting.device.type == "cuda" else setting.dtype
    model = setting.build(dtype)
    tower = VitTower(model, fp8=name == "fp8", graphs=name != "fused-no-graphs")
    return Arm(
        name,
        by_tower(tower, models.preprocess_of(model)),
        "fp8" if name == "fp8" else _name(dtype),
        differentiable=name != "fp8",
        memory="later" if name == "fused-no-graphs" else "first",
    )


_MAKERS: Mapping[str, Callable[[Setting], Arm]] = {
    "eager": _eager,
    "eager-fp16": _eager_fp16,
    "compiled": _compiled,
    "transformers": _transformers,
    "xformers": _xformers,
    "torchao-fp8": _torchao,
}


def make(names: list[str], setting: Setting) -> tuple[list[Arm], dict[str, str]]:
    """The arms of these names in their order, and why the others are absent.

    A baseline that is not installed, or that cannot be built here, is absent with the reason; the
    fused tower must be there.
    """
    made, absent = [], {}
    for name in names:
        why = _missing(name, setting)
        if why is None and name in OURS:
            made.append(_ours(setting, name))
        elif why is None:
            try:
                made.append(_MAKERS[name](setting))
            except Exception as error:  # another library's: whatever it is, the others go on
                why = reason(error)
        if why is not None:
            absent[name] = why
    return made, absent


def _missing(name: str, setting: Setting) -> str | None:
    """Why an arm cannot be here, if it is known beforehand."""
    cuda = setting.device.type == "cuda"
    package = {"xformers": "xformers", "torchao-fp8": "torchao"}.get(name)
    if package is not None and find_spec(package) is None:
        return f"{package} is not installed"
    if not cuda and name in ("eager-fp16", "compiled", "xformers", "torchao-fp8"):
        return "needs a GPU"
    if cuda and name in ("fp8", "torchao-fp8"):
        from steer_kernels.fp8 import fp8_available  # pyright: ignore[reportMissingImports]

        if not fp8_available(setting.device):
            return "this GPU has no FP8 products"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
