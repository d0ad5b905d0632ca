"""What users pass as images and prompts, brought to the contract's form and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from steer.core.errors import NotFiniteError


Images: TypeAlias = Tensor | np.ndarray | Image.Image | Sequence[Any]
"""A float or uint8 tensor `(B, 3, H, W)`, a channels-last array, a PIL image; or a list of them."""

SLACK = 0.25
"""How far pixels may leave [0, 1] (resampling overshoots) before the range is called wrong."""


class Outputs(list[Any]):
    """What a pipeline made that is no image (audio, a mesh): its own output, one item per row."""

    ndim = 0
    device = torch.device("cpu")


def as_batches(images: Images) -> list[Tensor]:
    """Images as checked float batches `(b, 3, H, W)` in [0, 1], in order.

    One batch, unless a list holds several sizes: then one batch per image. PIL images, uint8 and
    channels-last numpy arrays are converted; PIL images are turned as their EXIF says, grayscale is
    repeated, alpha dropped (as PIL's `convert("RGB")`). Tensors keep their graph; half precision is
    raised to float32.

    Raises:
        ValueError: Wrong type, shape, channel count or range, or no image at all.
        NotFiniteError: NaN pixels (a ValueError that knows which image).
    """
    if isinstance(images, Tensor):
        return [_check(images)]
    if isinstance(images, Image.Image):
        return [_from_pil(images)]
    if isinstance(images, np.ndarray):
        return [_check(_from_array(images))]
    if isinstance(images, Outputs):
        raise ValueError(
            "the pipeline's outputs are no images: pass a function (outputs, prompts) -> scores as "
            "the reward"
        )
    if not isinstance(images, Sequence) or isinstance(images, str):
        raise ValueError(
            f"images={type(images).__name__}: pass a float tensor (B, 3, H, W) in [0, 1], PIL "
            "images, or channels-last numpy arrays"
        )
    if not images:
        raise ValueError("images=[]: pass at least one image")
    singles: list[Tensor] = []
    for image in images:
        singles.append(_single(image, sum(map(len, singles))))
    same = all(s.shape == singles[0].shape and s.device == singles[0].device for s in singles)
    return [torch.cat(singles)] if same else singles


def as_pictures(images: Tensor) -> list[Image.Image]:
    """Checked floats `(B, 3, H, W)` in [0, 1] as 8-bit RGB images, rounded, in one transfer."""
    levels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]


def as_prompts(prompts: str | Sequence[str], count: int) -> list[str]:
    """One prompt per image; a single string serves all of them.

    Raises:
        ValueError: Not strings, or not one per image.
    """
    if isinstance(prompts, str):
        return [prompts] * count
    if not isinstance(prompts, Sequence):
        raise ValueError(f"prompts={prompts!r}: pass a string or a list of {count} strings")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts[{index}]={prompt!r}: every prompt must be a string")
    if len(prompts) != count:
        raise ValueError(
            f"len(prompts)={len(prompts)} for {count} images: pass one prompt per image, or a "
            "single string for all of them"
        )
    return list(prompts)


def _single(image: Any, first: int) -> Tensor:
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        return _check(_from_array(image), first)
    if isinstance(image, Tensor):
        return _check(image[None] if image.ndim == 3 else image, first)
    raise ValueError(
        f"images holds a {type(image).__name__}: pass PIL images, channels-last numpy arrays or "
        "tensors (3, H, W)"
    )


def _from_pil(image: Image.Image) -> Tensor:
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(
            f"a PIL image has mode {image.mode!r}, whose range is not 0..255: convert it yourself, "
            "for 16-bit images with np.asarray(image) / 65535"
        )
    if 0 in image.size:
        raise ValueError(f"a PIL image has size {image.size}: it has no pixels; leave it out")
    array = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return _check(torch.from_numpy(array).permute(2, 0, 1)[None])


def _from_array(array: np.ndarray) -> Tensor:
    """Channels-last `(H, W)`, `(H, W, C)` or `(B, H, W, C)`, C in 1, 3, 4, to `(B, 3, H, W)`."""
    shape = array.shape
    array = array[..., None] if array.ndim == 2 else array
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"images is a numpy array of shape {shape}: arrays are channels-last, (B, H, W, C), "
            "C = 1, 3 or 4; pass channels-first data as a torch tensor (B, 3, H, W)"
        )
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"images is a numpy array of {array.dtype}: pass floats in [0, 1] or uint8"
        )
    channels = [0, 0, 0] if array.shape[-1] == 1 else [0, 1, 2]
    return torch.from_numpy(np.ascontiguousarray(array[..., channels])).permute(0, 3, 1, 2)


def _check(images: Tensor, first: int = 0) -> Tensor:
    """A batch in the contract's form; `first` is the number of its first image."""
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        raise ValueError(f"images has shape {shape}, expected (B, 3, H, W): {_shape_hint(shape)}")
    if 0 in shape:
        what = "no pixels: leave such images out" if shape[0] else "pass at least one image"
        raise ValueError(f"images has shape {shape}: {what}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images has dtype {images.dtype}: pass floats in [0, 1], or uint8")
    _check_range(images.detach(), first)
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 5:
        return "score videos (B, F, 3, H, W) with steer.rewards.PerFrame(reward)"
    if len(shape) == 3 and shape[0] == 3:
        return "add the batch dimension, images[None]"
    if len(shape) in (3, 4) and shape[-1] in (3, 4):
        return "channels come first, images.permute(0, 3, 1, 2)"
    if len(shape) == 4 and shape[1] == 1:
        return "repeat the gray channel, images.expand(-1, 3, -1, -1)"
    if len(shape) == 4 and shape[1] == 4:
        return "drop alpha with images[:, :3]; if these are latents, decode them first"
    if len(shape) == 4 and shape[1] > 4:
        return "if these are latents, decode them first"
    return "pass one RGB image per row"


def _check_range(images: Tensor, first: int) -> None:
    low, high = torch.stack(images.aminmax()).tolist()
    if low >= -SLACK and high <= 1 + SLACK:
        return
    if math.isnan(low):
        raise NotFiniteError(first + int(images.isnan().flatten(1).any(1).nonzero()[0]))
    hint = "rescale to [0, 1]"
    if low >= -SLACK and high <= 255 + SLACK:
        hint = "they look like 0..255: pass images / 255, or uint8"
    elif low >= -1 - SLACK and high <= 1 + SLACK:
        hint = "they look like [-1, 1]: pass (images + 1) / 2"
    raise ValueError(f"images has values in [{low:.3g}, {high:.3g}], expected [0, 1]: {hint}")
