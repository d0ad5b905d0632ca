"""What stands in a picture: objects, their colours, shapes and sizes, told by image processing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from steer.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    SHAPES,
    SIZE_THRESHOLD,
)


Images = torch.Tensor | np.ndarray | Sequence[Image.Image]


_FOREGROUND = 22.0  # Lab distance from the background that makes a pixel foreground


_EDGE = 0.4  # ... and the least share of the strongest difference nearby, which parts close objects


_SPECK = 12  # pixels: one speck at most
_SMUDGE, _FAINT = 64, 0.35  # pixels, rgb contrast: what is smaller and fainter is no object
_MIN_FIT, _MIN_LEAD = 0.74, 0.012  # template IoU, and its lead over the next shape
_COLOR_TOLERANCE = 38.0  # Lab distance from its class beyond which a colour is unclear


_MIN_CHROMA = 30.0


_GREY_TOLERANCE = 0.18


_SMALLEST = 9.0  # equal-area diameter below which no shape can be told


MAX_OBJECTS = 6  # the largest ones are read in full; any more are merely counted


@dataclass(frozen=True)
class Found:
    """An object in a picture; `color` or `shape` is None when it is unclear.

    x, y and the equal-area diameter are in pixels of a 64x64 picture; `fit` is the best template's
    IoU in [0, 1], `spread` the standard deviation of the colour inside, in rgb units.
    """

    color: str | None
    shape: str | None
    x: float
    y: float
    diameter: float
    fit: float
    spread: float

    def __str__(self) -> str:
        size = "small" if self.diameter < SIZE_THRESHOLD else "large"
        return f"{size} {self.color or 'oddly coloured'} {self.shape or 'unclear shape'}"


@dataclass(frozen=True)
class Reading:
    """What a picture shows: objects (largest first), background class (None when unclear).

    `count` includes objects too many to be read, `speckle` is the area in pixels of specks (3 to 11
    pixels each), and `spread` the standard deviation of the background colour, in rgb units.
    """

    objects: tuple[Found, ...]
    count: int
    background: str | None
    speckle: int
    spread: float


def read(images: Images) -> list[Reading]:
    """Finds the objects and the background of each picture; see `oracle` for the input."""
    rgb = _as_array(images)
    lab = _to_lab(rgb)
    return [_read_one(picture, colors) for picture, colors in zip(rgb, lab, strict=True)]


def _as_array(images: Images) -> np.ndarray:
    """Pictures as floats (B, 64, 64, 3) in [0, 1]."""
    if isinstance(images, torch.Tensor):
        data = images.detach()
    elif isinstance(images, np.ndarray):
        data = torch.from_numpy(images)
    else:
        data = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    data = data[None] if data.ndim == 3 else data
    if data.ndim != 4 or 3 not in (data.shape[1], data.shape[-1]):
        raise ValueError(f"images must be (B, 3, H, W) or (B, H, W, 3), not {tuple(data.shape)}")
    data = data if data.shape[1] == 3 else data.permute(0, 3, 1, 2)
    data = data.float() / (1 if data.is_floating_point() else 255)
    if data.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        data = torch.nn.functional.interpolate(data, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
    return data.nan_to_num(0.0).clamp(0, 1).permute(0, 2, 3, 1).cpu().contiguous().numpy()


_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


_XYZ = (_XYZ / _XYZ.sum(1, keepdims=True)).astype(np.float32).T


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) in [0, 1] to CIELAB (..., 3)."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ _XYZ
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


_COLOR_NAMES = tuple(COLORS)


_PROTOTYPES = _to_lab(np.array(list(COLORS.values()), np.float32) / 255)


def _read_one(rgb: np.ndarray, lab: np.ndarray) -> Reading:
    frame = np.ones((IMAGE_SIZE, IMAGE_SIZE), bool)
    frame[2:-2, 2:-2] = False
    ground, ground_lab = np.median(rgb[frame], 0), np.median(lab[frame], 0)
    far = np.linalg.norm(lab - ground_lab, axis=-1)
    noise = float(np.median(far[frame]))
    parts = np.zeros(far.shape, np.int32)
    floor = np.maximum(_EDGE * ndimage.maximum_filter(far, 7), max(_FOREGROUND, 3 * noise))
    ndimage.label(far > floor, output=parts)
    areas = _visible_areas(parts, np.linalg.norm(rgb - ground, axis=-1))
    speckle = int(areas[(areas > 2) & (areas < _SPECK)].sum())
    order = [int(k) for k in np.argsort(-areas) if areas[k] >= _SPECK]
    masks = [m for k in order[:MAX_OBJECTS] for m in _split(parts == k, lab, far)]
    everything = np.isin(parts, order)
    objects = [_describe(mask, everything & ~mask, rgb, ground) for mask in masks[:MAX_OBJECTS]]
    outside = ~_grown(everything)
    spread = float(rgb[outside].std(0).mean()) if outside.sum() > 50 else 1.0
    count = len(masks) + max(len(order) - MAX_OBJECTS, 0)
    return Reading(tuple(objects), count, _background(ground), speckle, spread)


def _visible_areas(parts: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Pixels of each labelled component; 0 for the background and for small faint smudges."""
    areas = np.bincount(parts.ravel())
    peaks = np.asarray(ndimage.maximum(contrast, parts, np.arange(len(areas))))
    areas[(areas < _SMUDGE) & (peaks < _FAINT)] = 0
    areas[0] = 0
    return areas


def _background(rgb: np.ndarray) -> str | None:
    """The background class of a colour (3,), or None when it is coloured or in between."""
    gaps = {name: float(np.abs(rgb - value[0] / 255).max()) for name, value in BACKGROUNDS.items()}
    name = min(gaps, key=gaps.__getitem__)
    return name if gaps[name] < _GREY_TOLERANCE and np.ptp(rgb) < 0.12 else None


def _grown(mask: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.binary_dilation(mask, iterations=2), bool)


def _core(mask: np.ndarray) -> np.ndarray:
    """The inside of a mask, two pixels from its edge where it is wide enough."""
    for iterations in (2, 1):
        core = np.asarray(ndimage.binary_erosion(mask, iterations=iterations), bool)
        if core.sum() >= _SPECK:
            return core
    return mask


def _split(mask: np.ndarray, lab: np.ndarray, far: np.ndarray) -> list[np.ndarray]:
    """Parts a component where objects of clearly different colours touch; masks (64, 64)."""
    core = mask & (far > 0.75 * np.percentile(far[mask], 75))
    inside = lab[core]
    classes = np.linalg.norm(inside[:, None] - _PROTOTYPES, axis=-1).argmin(1)
    sizes = np.bincount(classes, minlength=len(COLORS))
    major = [k for k in range(len(COLORS)) if sizes[k] >= max(0.15 * len(inside), _SPECK)]
    if len(major) < 2:
        return [mask]
    middles = [np.median(inside[classes == k], 0) for k in major]
    if min(math.dist(a, b) for a, b in itertools.combinations(middles, 2)) < 30:
        return [mask]
    names = np.full(mask.shape, -1)
    names[core] = np.where(np.isin(classes, major), classes, -1)
    nearby = np.zeros((2, *mask.shape), np.int32)
    ndimage.distance_transform_edt(
        names < 0, return_distances=False, return_indices=True, indices=nearby
    )
    nearest = names[nearby[0], nearby[1]]
    return [part for k in major if (part := mask & (nearest == k)).sum() >= _SPECK]


def _describe(mask: np.ndarray, others: np.ndarray, rgb: np.ndarray, ground: np.ndarray) -> Found:
    """Describes the object under a mask; pixels of `others` do not belong to it."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = max(rows[0] - 2, 0), max(cols[0] - 2, 0)
    crop = (slice(top, rows[-1] + 3), slice(left, cols[-1] + 3))
    mask, others, rgb = mask[crop], others[crop], rgb[crop]
    core = _core(mask)
    color = np.median(rgb[core], 0)
    span = color - ground
    alpha = np.clip(((rgb - ground) @ span) / (span @ span + 1e-6), 0, 1)
    alpha *= _grown(mask) & ~others
    alpha = np.pad(alpha, 3)
    y, x = (np.arange(n) + 0.5 for n in alpha.shape)
    area = float(alpha.sum()) + 1e-6
    cx, cy = float(alpha.sum(0) @ x) / area, float(alpha.sum(1) @ y) / area
    diameter = math.sqrt(4 * area / math.pi)
    shape, fit = _fit_shape(alpha, x - cx, y - cy, diameter)
    spread = float(rgb[core].std(0).mean())
    return Found(_name(color), shape, left - 3 + cx, top - 3 + cy, diameter, fit, spread)


def _name(rgb: np.ndarray) -> str | None:
    """The colour class of (3,) rgb, or None when it is pale or far from all of them."""
    lab = _to_lab(rgb)
    gaps = np.linalg.norm(_PROTOTYPES - lab, axis=-1)
    clear = gaps.min() < _COLOR_TOLERANCE and math.hypot(lab[1], lab[2]) > _MIN_CHROMA
    return _COLOR_NAMES[int(gaps.argmin())] if clear else None


def _template_normals() -> tuple[np.ndarray, np.ndarray]:
    """Edge normals (4, T, 2) of all squares and triangles tried, and apothem over diameter (T,)."""
    turns = [[t, t + 90, t + 180, t + 270] for t in range(0, 90, 10)]
    turns += [[t, t + 120, t + 240, t] for t in range(0, 120, 10)]
    angle = np.radians(np.array(turns, np.float32)).T
    square, triangle = math.sqrt(math.pi) / 4, math.sqrt(math.pi / 12 / math.sqrt(3))
    return np.stack([np.cos(angle), np.sin(angle)], -1), np.repeat([square, triangle], [9, 12])


_NORMALS, _APOTHEMS = _template_normals()


def _fit_shape(
    alpha: np.ndarray, dx: np.ndarray, dy: np.ndarray, diameter: float
) -> tuple[str | None, float]:
    """The best shape for a matte (h, w) about its centroid, and its IoU with the template."""
    if diameter < _SMALLEST:
        return None, 0.0
    dx, dy = dx.astype(np.float32), dy.astype(np.float32)
    along = _NORMALS[..., 0, None] * dx, _NORMALS[..., 1, None] * dy
    edges = (along[0][..., None, :] + along[1][..., :, None]).max(0)
    polygons = edges - (_APOTHEMS * diameter).astype(np.float32)[:, None, None]
    circle = np.hypot(dx, dy[:, None]) - diameter / 2
    distance = np.concatenate([circle[None], polygons])
    templates = np.clip(0.5 - distance, 0, 1)
    common = np.minimum(templates, alpha.astype(np.float32)).sum((1, 2))
    iou = common / (templates.sum((1, 2)) + alpha.sum() - common)
    best_of = (float(iou[0]), float(iou[1:10].max()), float(iou[10:].max()))
    fits = dict(zip(SHAPES, best_of, strict=True))
    best, second = sorted(SHAPES, key=lambda shape: -fits[shape])[:2]
    clear = fits[best] >= _MIN_FIT and fits[best] - fits[second] >= _MIN_LEAD
    return best if clear else None, fits[best]
