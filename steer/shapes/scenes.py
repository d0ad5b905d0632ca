"""A small world of coloured shapes: meanings of captions, scenes that match them, and pictures.

A `Spec` is the meaning of a caption. `place` makes a random `Scene` that matches it, `render` draws
scenes as 64x64 RGB tensors, and `is_true_of` is the ground truth. `perturb` makes hard negatives.
One eighth of all combinations (`is_held_out`) is kept out of training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, TypeVar

import numpy as np


T = TypeVar("T")
Split = Literal["train", "held_out", "all"]
IMAGE_SIZE = 64
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "orange": (246, 130, 18),
    "yellow": (248, 226, 36),
    "green": (34, 164, 64),
    "blue": (34, 88, 222),
    "purple": (146, 46, 188),
}
SHAPES = ("circle", "square", "triangle")
SIZES = ("small", "large")
BACKGROUNDS = {"white": (245, 245, 245), "grey": (128, 128, 128), "black": (20, 20, 20)}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIZE_THRESHOLD = 19.0
"""Equal-area diameter, in pixels: smaller is small, larger is large."""

AXES = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}


@dataclass(frozen=True)
class Group:
    """`count` (1 to 3) objects of one colour and shape; `size` None means any size."""

    count: int
    color: str
    shape: str
    size: str | None = None

    def __post_init__(self) -> None:
        if self.count not in (1, 2, 3):
            raise ValueError(f"count must be 1, 2 or 3, not {self.count!r}")
        if self.color not in COLORS:
            raise ValueError(f"color must be one of {tuple(COLORS)}, not {self.color!r}")
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {SHAPES}, not {self.shape!r}")
        if self.size is not None and self.size not in SIZES:
            raise ValueError(f"size must be one of {SIZES} or None, not {self.size!r}")


@dataclass(frozen=True)
class Spec:
    """What a caption says: one group, or two single objects with or without a relation."""

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if len(self.groups) not in (1, 2):
            raise ValueError(f"a spec has one or two groups, not {len(self.groups)}")
        if any(group.count == 3 and group.size == "large" for group in self.groups):
            raise ValueError("three large objects do not fit: use size 'small' or None")
        if self.relation is not None and (self.relation not in RELATIONS or len(self.groups) < 2):
            raise ValueError(f"relation must be one of {RELATIONS}, between two groups")
        if self.background is not None and self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {tuple(BACKGROUNDS)}")
        if len(self.groups) == 2:
            a, b = self.groups
            if a.count != 1 or b.count != 1:
                raise ValueError("two groups are one object each: several of a kind stand alone")
            if (a.color, a.shape) == (b.color, b.shape):
                raise ValueError("two groups must differ in colour or in shape")


@dataclass(frozen=True)
class Shape:
    """One object: `rgb` in [0, 1], centroid and equal-area `diameter` in pixels, tilt in degrees.

    Pixel (row, col) covers [col, col + 1] x [row, row + 1]; y points down.
    """

    kind: str
    rgb: tuple[float, float, float]
    x: float
    y: float
    diameter: float
    angle: float = 0.0

    @cached_property
    def color(self) -> str:
        """Name of the nearest colour class."""
        return min(COLORS, key=lambda name: math.dist(self.rgb, [c / 255 for c in COLORS[name]]))

    @property
    def size(self) -> str:
        """`"small"` or `"large"`."""
        return "large" if self.diameter > SIZE_THRESHOLD else "small"


@dataclass(frozen=True)
class Scene:
    """Non-overlapping shapes on a plain background, whose rgb is in [0, 1]."""

    shapes: tuple[Shape, ...]
    background_rgb: tuple[float, float, float]

    @cached_property
    def background(self) -> str:
        """Name of the nearest background class."""
        grey = sum(self.background_rgb) / 3
        return min(BACKGROUNDS, key=lambda name: abs(grey - BACKGROUNDS[name][0] / 255))

    @cached_property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """(colour, shape) of every object."""
        return tuple((shape.color, shape.kind) for shape in self.shapes)


def combination(spec: Spec) -> str:
    """The canonical name of a spec's counts, colours, shapes and relation; `is_held_out` is by it.

    Sizes and background do not matter, and 'A left of B' is 'B right of A'.
    """
    names = [f"{g.count} {g.color} {g.shape}" for g in spec.groups]
    relation = spec.relation or "and"
    if relation in ("right of", "below"):
        names, relation = names[::-1], OPPOSITE[relation]
    elif relation == "and":
        names.sort()
    return f" {relation} ".join(names)


@lru_cache(maxsize=8192)
def _held_out(name: str) -> bool:
    return hashlib.sha256(f"shapes-7 {name}".encode()).digest()[0] % 8 == 0


def is_held_out(spec: Spec) -> bool:
    """Whether the spec's combination (see `combination`) is kept out of training; about 1/8 is."""
    return _held_out(combination(spec))


def sample_spec(rng: np.random.Generator, split: Split = "all") -> Spec:
    """A random spec: 25% single, 25% two or three of a kind, 35% relations, 15% 'and'."""
    while True:
        spec = _random_spec(rng)
        if split == "all" or is_held_out(spec) == (split == "held_out"):
            return spec


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _random_spec(rng: np.random.Generator) -> Spec:
    kind = rng.random()
    count = 1 if kind < 0.25 or kind >= 0.5 else int(rng.integers(2, 4))
    groups = [_random_group(rng, count)]
    while kind >= 0.5 and len(groups) < 2:
        other = _random_group(rng, 1)
        if (other.color, other.shape) != (groups[0].color, groups[0].shape):
            groups.append(other)
    relation = pick(rng, RELATIONS) if 0.5 <= kind < 0.85 else None
    background = pick(rng, tuple(BACKGROUNDS)) if rng.random() < 0.4 else None
    return Spec(tuple(groups), relation, background)


def _random_group(rng: np.random.Generator, count: int) -> Group:
    size = pick(rng, SIZES) if rng.random() < 0.4 else None
    if count == 3 and size == "large":
        size = "small"
    return Group(count, pick(rng, tuple(COLORS)), pick(rng, SHAPES), size)


def perturb(spec: Spec, rng: np.random.Generator) -> Spec:
    """A hard negative: `spec` with one aspect changed, false of every scene of `spec`.

    The aspect is drawn evenly from those that apply: colour, shape, count, size, background, the
    relation's direction, or the two objects' colours exchanged.
    """
    options = _negatives(spec)
    return pick(rng, options[pick(rng, tuple(options))])


@lru_cache(maxsize=4096)
def _negatives(spec: Spec) -> dict[str, list[Spec]]:
    """Every hard negative of `spec`, by the aspect that is changed (families are non-empty)."""
    found: dict[str, list[Spec]] = {}
    for aspect, groups, relation, background in _variants(spec):
        try:
            other = Spec(groups, relation, background)
        except ValueError:  # no such thing in this world, such as three large objects
            continue
        if other != spec:
            found.setdefault(aspect, []).append(other)
    return found


def _variants(spec: Spec) -> Iterator[tuple[str, tuple[Group, ...], str | None, str | None]]:
    groups, relation, background = spec.groups, spec.relation, spec.background
    for i, g in enumerate(groups):
        new = {
            "color": [replace(g, color=color) for color in COLORS],
            "shape": [replace(g, shape=shape) for shape in SHAPES],
            "count": [replace(g, count=count) for count in (1, 2, 3)],
            "size": [replace(g, size=size) for size in SIZES if g.size],
        }
        for aspect, others in new.items():
            for other in others:
                yield aspect, (*groups[:i], other, *groups[i + 1 :]), relation, background
    for name in BACKGROUNDS if background else ():
        yield "background", groups, relation, name
    if relation:
        yield "relation", groups, OPPOSITE[relation], background
    if len({g.color for g in groups}) == len({g.shape for g in groups}) == 2:
        a, b = groups
        pair = (replace(a, color=b.color), replace(b, color=a.color))
        yield "exchange", pair, relation, background


def relation_holds(relation: str, dx: float, dy: float) -> bool:
    """Whether an object is in `relation` to another at offset (dx, dy) from it (y down).

    The offset's larger component decides, so exactly one of the four relations holds.
    """
    axis, sign = AXES[relation]
    along, across = (dx, dy)[axis], (dx, dy)[1 - axis]
    return sign * along > abs(across)


def is_true_of(spec: Spec, scene: Scene) -> bool:
    """Whether `spec` holds for `scene` exactly: nothing missing, nothing wrong, nothing extra."""
    kinds, groups = scene.kinds, spec.groups
    if len(kinds) != sum(group.count for group in groups):
        return False
    if spec.background is not None and spec.background != scene.background:
        return False
    for group in groups:
        kind = (group.color, group.shape)
        if kinds.count(kind) != group.count:
            return False
        named = (s for s, k in zip(scene.shapes, kinds, strict=True) if k == kind)
        if group.size is not None and any(shape.size != group.size for shape in named):
            return False
    if spec.relation is None:
        return True
    a, b = (scene.shapes[kinds.index((group.color, group.shape))] for group in groups)
    return relation_holds(spec.relation, b.x - a.x, b.y - a.y)
