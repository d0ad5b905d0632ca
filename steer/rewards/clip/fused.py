"""Image and text to a cosine: by open_clip's own modules, or by the fused tower."""

# steer_kernels is the folder kernels/, which type checkers do not find by that name.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from steer.core.weights.reading import fingerprint
from steer.rewards.clip.encoder import Encoder
from steer.rewards.clip.preprocess import Preprocess, work_dtype
from steer.rewards.sharing import once


if TYPE_CHECKING:
    from steer.rewards.clip.tower import VitTower

Fused: TypeAlias = bool | Literal["fp8"] | None
"""Whether a CLIP reward runs its image tower by the fused ops (`steer_kernels`).

`None`: on NVIDIA GPUs, where the model fits; `True`: anywhere, on CPUs by the ops' references;
`False`: open_clip's own modules; `"fp8"`: with most products in FP8, no gradient, opt-in because
scores move a little.
"""

_towers: WeakValueDictionary[Any, VitTower] = WeakValueDictionary()


def choose_tower(encoder: Encoder, fused: Fused) -> VitTower | None:
    """The encoder's fused tower, if it is wanted and can be; made once per encoder.

    Raises:
        ValueError: It is asked for and the model does not fit, or an unknown `fused`.
    """
    if fused not in (None, True, False, "fp8"):
        raise ValueError(f"fused={fused!r}: one of None (automatic), True, False, 'fp8'")
    if fused is False or (fused is None and not _automatic(encoder)):
        return None
    from steer.rewards.clip.tower import VitTower

    fp8 = fused == "fp8"
    if fp8 not in encoder.towers:
        encoder.towers[fp8] = _same(VitTower(encoder.model, fp8=fp8))
    return encoder.towers[fp8]


def _same(tower: VitTower) -> VitTower:
    """A tower in use with equal weights, whose memory both models then share; else this one.

    OpenAI's ViT-L/14 comes in several files, for CLIP scores and for the aesthetic predictor.
    """
    from steer.rewards.clip.tower_weights import tensors

    weights = dict(enumerate(tensors(tower.weights)))
    place = (str(tower.device), tower.dtype, tower.fp8, tower.weights.heads, tower.weights.gelu)
    key = (fingerprint({str(name): value for name, value in weights.items()}), *place)
    known = _towers.setdefault(key, tower)
    if known is tower or not all(map(torch.equal, weights.values(), tensors(known.weights))):
        return tower
    both = zip(tower.visual.parameters(), known.visual.parameters(), strict=True)
    for mine, shared in both:
        mine.data = shared.data
    return known


def _automatic(encoder: Encoder) -> bool:
    if encoder.device.type != "cuda" or encoder.dtype == torch.float64:
        return False
    from steer_kernels.backend import backend

    from steer.rewards.clip.tower_weights import unfit

    return backend(str(encoder.device)) == "triton" and unfit(encoder.model) is None


def cosines(
    encoder: Encoder,
    tower: VitTower | None,
    preprocess: Preprocess,
    images: Tensor,
    texts: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """`scale` times the product of each image's unit features and its text; differentiable.

    Args:
        encoder: The model.
        tower: Its fused tower, or None for open_clip's modules.
        preprocess: From images to its pixels.
        images: Float `(B, 3, H, W)` in [0, 1], on the encoder's device.
        texts: `(B, D)`.
        scale: The factor.

    Returns:
        `(B,)`, at least float32.
    """
    if tower is None:
        work = work_dtype(encoder.dtype)
        view = ("pixels", preprocess, work)
        own = ("features", id(encoder), preprocess)
        features = once(
            images,
            own,
            lambda: encoder.images(once(images, view, lambda: preprocess(images.to(work)))),
        )
        return scale * (features * texts).sum(-1)
    return _run_tower(tower, preprocess, images, texts, scale)


def _run_tower(
    tower: VitTower, preprocess: Preprocess, images: Tensor, texts: Tensor, scale: float
) -> Tensor:
    from steer.rewards.clip.tower import canonical

    preprocess = canonical(preprocess, images)
    view = ("patches", preprocess, tower.weights.patch, tower.dtype)
    patches = once(images, view, lambda: tower.patches(images, preprocess))
    if torch.is_grad_enabled() and patches.requires_grad:
        return tower.scores(patches, texts, scale)
    rows = once(images, ("rows", id(tower), preprocess), lambda: tower.rows(patches))
    return tower.head(rows, texts, scale)
