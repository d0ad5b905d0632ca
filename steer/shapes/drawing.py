"""Specs laid out as scenes, and scenes drawn as pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from steer.shapes.scenes import (
    AXES,
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Group,
    Scene,
    Shape,
    Spec,
    pick,
)


Polygon = tuple[np.ndarray, np.ndarray]
_MARGIN, _GAP, _OFF_AXIS = 2.0, 3.0, 0.7  # pixels, pixels, share of the distance
_TILT, _COLOR_JITTER, _GREY_JITTER = 6.0, 9.0, 7.0  # degrees, 8-bit steps, 8-bit steps


_EDGES: dict[str, tuple[float, ...]] = {  # directions of the edge normals, degrees, y down
    "circle": (),
    "square": (0.0, 90.0, 180.0, 270.0),
    "triangle": (90.0, 210.0, 330.0),
}


_INRADIUS = {"circle": 0.5, "square": math.pi**0.5 / 4, "triangle": (math.pi / 12 / 3**0.5) ** 0.5}


def place(spec: Spec, rng: np.random.Generator) -> Scene:
    """A random scene that matches `spec`: no overlaps, gaps >= 3 px, margins >= 2 px."""
    groups = [group for group in spec.groups for _ in range(group.count)]
    for attempt in range(100):
        slack = max(0.0, 1 - attempt / 8)
        sizes = [_diameter(group.size, len(groups), slack, rng) for group in groups]
        tilts = [0.0 if g.shape == "circle" else rng.uniform(-_TILT, _TILT) for g in groups]
        outlines = [_outline(*it) for it in zip(groups, sizes, tilts, strict=True)]
        found = _positions(outlines, sizes, spec.relation, 64 if attempt < 2 else 512, rng)
        if found is not None:
            break
    else:
        raise RuntimeError(f"found no room for {spec}")
    shapes = tuple(
        Shape(group.shape, _jittered(COLORS[group.color], rng), float(x), float(y), size, tilt)
        for group, (x, y), size, tilt in zip(groups, found, sizes, tilts, strict=True)
    )
    name = spec.background or pick(rng, tuple(BACKGROUNDS))
    grey = (BACKGROUNDS[name][0] + rng.uniform(-_GREY_JITTER, _GREY_JITTER)) / 255
    return Scene(shapes, (grey, grey, grey))


def _diameter(size: str | None, objects: int, slack: float, rng: np.random.Generator) -> float:
    if size is None:
        size = "small" if objects == 3 else pick(rng, SIZES)
    low, high = (13.0, 16.0) if size == "small" else (22.0, 26.0 if objects == 1 else 24.0)
    return low + (high - low) * slack * float(rng.random())


def _jittered(rgb: tuple[int, int, int], rng: np.random.Generator) -> tuple[float, float, float]:
    noise = rng.uniform(-_COLOR_JITTER, _COLOR_JITTER, 3)
    r, g, b = (min(max((c + float(d)) / 255, 0.0), 1.0) for c, d in zip(rgb, noise, strict=True))
    return r, g, b


def _outline(group: Group, diameter: float, tilt: float) -> Polygon:
    """Unit edge normals (E, 2) and corners (E, 2) about the centroid; a circle is a 24-gon."""
    kind = group.shape
    edges = _EDGES[kind] or tuple(np.arange(0.0, 360.0, 15.0))
    turn = np.radians(np.asarray(edges) + tilt)
    half = np.pi / len(edges)
    reach = _INRADIUS[kind] * diameter / math.cos(half)
    normals = np.stack([np.cos(turn), np.sin(turn)], -1)
    corners = reach * np.stack([np.cos(turn + half), np.sin(turn + half)], -1)
    return normals, corners


def _positions(
    outlines: Sequence[Polygon],
    diameters: Sequence[float],
    relation: str | None,
    tries: int,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Centroids (n, 2), or None when none of `tries` random layouts is allowed."""
    corners = [c for _, c in outlines]
    low = np.stack([_MARGIN - c.min(0) for c in corners])
    high = np.stack([IMAGE_SIZE - _MARGIN - c.max(0) for c in corners])
    layouts = low + (high - low) * rng.random((tries, len(outlines), 2))
    fine = np.ones(tries, bool)
    for i in range(len(outlines)):
        for j in range(i):
            offsets = layouts[:, i] - layouts[:, j]
            fine &= _separation(outlines[j], outlines[i], offsets) >= _GAP
    if relation is not None:
        axis, sign = AXES[relation]
        offsets = layouts[:, 1] - layouts[:, 0]
        along, across = sign * offsets[:, axis], np.abs(offsets[:, 1 - axis])
        fine &= (along >= 0.375 * sum(diameters) + 3) & (across < _OFF_AXIS * along)
    best = int(fine.argmax())
    return layouts[best] if fine[best] else None


def _separation(a: Polygon, b: Polygon, offsets: np.ndarray) -> np.ndarray:
    """A lower bound (tries,) of the gap between convex outlines, `b` at `offsets` from `a`."""
    normals = np.concatenate([a[0], -b[0]])
    reach = (normals @ a[1].T).max(1) + (-normals @ b[1].T).max(1)
    return (offsets @ normals.T - reach).max(1)


def _pack(scenes: Sequence[Scene], device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed distances (M, 64, 64) of all M shapes, negative inside, and their scene index (M,)."""
    shapes = [(i, shape) for i, scene in enumerate(scenes) for shape in scene.shapes]
    rows: list[tuple[float, ...]] = []
    for _, s in shapes:
        turns = [math.radians(t + s.angle) for t in _EDGES[s.kind]] or [0.0]
        turns += turns[:1] * (4 - len(turns))
        inner = _INRADIUS[s.kind] * s.diameter
        normals = [f(t) for t in turns for f in (math.cos, math.sin)]
        rows.append((s.x, s.y, inner, float(s.kind == "circle"), *normals))
    table = torch.tensor(rows, dtype=torch.float32, device=device).reshape(len(rows), 12)
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32, device=device) + 0.5
    dx = (axis - table[:, 0:1])[:, None, :]
    dy = (axis - table[:, 1:2])[:, :, None]
    distance = table[:, 4, None, None] * dx + table[:, 5, None, None] * dy
    for k in (6, 8, 10):
        along = table[:, k, None, None] * dx + table[:, k + 1, None, None] * dy
        torch.maximum(distance, along, out=distance)
    circle = table[:, 3] > 0
    distance[circle] = torch.sqrt(dx[circle] ** 2 + dy[circle] ** 2)
    index = torch.tensor([i for i, _ in shapes], dtype=torch.long, device=device)
    return distance - table[:, 2, None, None], index


def render(scenes: Sequence[Scene], device: str | torch.device = "cpu") -> torch.Tensor:
    """Anti-aliased pictures (B, 3, 64, 64), float32 in [0, 1]. Shapes must not overlap."""
    distance, index = _pack(scenes, device)
    alpha = (0.5 - distance).clamp_(0, 1)
    paint = [s.rgb for scene in scenes for s in scene.shapes]
    ground = torch.tensor([scene.background_rgb for scene in scenes], device=device)
    rgb = torch.tensor(paint, dtype=torch.float32, device=device).reshape(-1, 3)
    image = ground[:, :, None, None].repeat(1, 1, IMAGE_SIZE, IMAGE_SIZE)
    image.index_add_(0, index, alpha[:, None] * (rgb - ground[index])[:, :, None, None])
    return image.clamp_(0, 1)


def render_labels(scenes: Sequence[Scene], device: str | torch.device = "cpu") -> torch.Tensor:
    """Class of the object that covers each pixel's centre, (B, 64, 64) int64.

    0 is background; otherwise 1 + colour index * len(SHAPES) + shape index.
    """
    distance, index = _pack(scenes, device)
    names, kinds = list(COLORS), [kind for scene in scenes for kind in scene.kinds]
    classes = [1 + names.index(c) * len(SHAPES) + SHAPES.index(s) for c, s in kinds]
    value = torch.tensor(classes, dtype=torch.long, device=device)[:, None, None]
    labels = torch.zeros(len(scenes), IMAGE_SIZE, IMAGE_SIZE, dtype=torch.long, device=device)
    return labels.index_add_(0, index, (distance <= 0) * value)
