"""Checks pictures of the shapes world against captions, without anything learned.

`read` finds the objects in each picture, `oracle` compares them with a caption, and `neatness`
rates how clean the picture looks whatever it shows. The background's colour is that of the border,
the foreground is found by colour distance in CIELAB, objects are connected components with the
nearest colour class, and their shape is found by comparing alpha mattes with templates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steer.shapes.captions import parse
from steer.shapes.reading import MAX_OBJECTS, Found, Images, Reading, read
from steer.shapes.scenes import (
    SIZE_THRESHOLD,
    Group,
    Spec,
    relation_holds,
)


MAX_SPECKLE = 24  # pixels: all specks together
_SIZE_BAND = 1.0  # pixels of tolerance about SIZE_THRESHOLD


@dataclass(frozen=True)
class Verdict:
    """The share of a caption's constraints that a picture meets, in [0, 1], and what failed."""

    fraction: float
    all_met: bool
    notes: tuple[str, ...]


def oracle(images: Images, prompt: str | Spec | Sequence[str] | Sequence[Spec]) -> list[Verdict]:
    """Checks each picture against its caption, or all pictures against one caption.

    `images` are a tensor (B, 3, H, W) or an array (B, H, W, 3), floats in [0, 1] or uint8, or PIL
    images. Constraints: the number of objects, each group's colour, shape and size, the relation
    and the background, as far as the caption mentions them.
    """
    prompts = [prompt] if isinstance(prompt, (str, Spec)) else list(prompt)
    specs = [parse(p) if isinstance(p, str) else p for p in prompts]
    readings = read(images)
    if len(specs) == 1:
        specs *= len(readings)
    if len(specs) != len(readings):
        raise ValueError(f"{len(specs)} prompts for {len(readings)} images: give one, or one each")
    return [judge(reading, spec) for reading, spec in zip(readings, specs, strict=True)]


def neatness(images: Images) -> np.ndarray:
    """How clean each picture looks, (B,) float64 in [0, 1]; 0 when it shows no object.

    The geometric mean of the background's evenness, the objects' evenness of colour and their
    sharpness of form, less a penalty for specks and for objects of no clear class.
    """
    return np.array([_neatness(reading) for reading in read(images)], dtype=np.float64)


def _neatness(reading: Reading) -> float:
    if not reading.objects:
        return 0.0
    ground = 1 - min(reading.spread / 0.08, 1.0)
    flat = 1 - min(float(np.mean([o.spread for o in reading.objects])) / 0.12, 1.0)
    form = min(max(float(np.mean([o.fit for o in reading.objects])) - 0.6, 0.02) / 0.35, 1.0)
    unclear = sum(o.color is None or o.shape is None for o in reading.objects)
    extra = unclear + max(reading.count - 3, 0)
    return (ground * flat * form) ** (1 / 3) * 0.6**extra * math.exp(-reading.speckle / 60)


def judge(reading: Reading, spec: Spec) -> Verdict:
    """Compares what was found in one picture with a spec."""
    wanted = sum(group.count for group in spec.groups)
    checks: list[str] = []  # what failed, or "" for a constraint that is met
    clean = reading.speckle <= MAX_SPECKLE
    checks.append("" if reading.count == wanted and clean else _miscount(reading, wanted))
    slots = _assign(reading.objects, spec)
    for group in spec.groups:
        mine = [slots.pop(0) for _ in range(group.count)]
        checks += _check_group(group, mine)
        if spec.relation is not None:
            slots += mine
    if spec.relation is not None:
        checks.append(_check_relation(spec, slots))
    if spec.background is not None:
        right = reading.background == spec.background
        shown = reading.background or "unclear"
        checks.append("" if right else f"the background is {shown}, not {spec.background}")
    notes = tuple(dict.fromkeys(check for check in checks if check))
    return Verdict(checks.count("") / len(checks), not notes, notes)


def _miscount(reading: Reading, wanted: int) -> str:
    if reading.count == wanted:
        return "there are stray specks"
    shown = ", ".join(f"a {o}" for o in reading.objects) or "nothing"
    number = "is 1 object" if reading.count == 1 else f"are {reading.count} objects"
    return f"there {number}, not {wanted}: {shown}"


def _check_group(group: Group, found: Sequence[Found | None]) -> list[str]:
    name, checks = f"{group.color} {group.shape}", []
    colors = [o.color if o else "missing" for o in found]
    shapes = [o.shape if o else "missing" for o in found]
    for shown, wanted in ((colors, group.color), (shapes, group.shape)):
        wrong = [s or "unclear" for s in shown if s != wanted]
        checks.append(f"{name}: {' and '.join(wrong)}, not {wanted}" if wrong else "")
    if group.size is not None:
        fine = all(o is not None and _size_fits(o.diameter, group.size) for o in found)
        checks.append("" if fine else f"{name}: not {group.size}")
    return checks


def _size_fits(diameter: float, size: str) -> bool:
    sign = 1 if size == "small" else -1
    return sign * (diameter - SIZE_THRESHOLD) < _SIZE_BAND


def _check_relation(spec: Spec, slots: Sequence[Found | None]) -> str:
    a, b = slots
    x, y = (f"the {g.color} {g.shape}" for g in spec.groups)
    relation = spec.relation or ""
    if a is not None and b is not None and relation_holds(relation, b.x - a.x, b.y - a.y):
        return ""
    return f"{x} is not {relation} {y}"


def _assign(objects: Sequence[Found], spec: Spec) -> list[Found | None]:
    """The object for each object that the spec asks for: the assignment with most agreement."""
    wanted = [group for group in spec.groups for _ in range(group.count)]
    pool: list[Found | None] = [*objects, *[None] * len(wanted)]

    def agreement(choice: tuple[Found | None, ...]) -> float:
        pairs = zip(choice, wanted, strict=True)
        return sum(_likeness(found, group) for found, group in pairs)

    return list(max(itertools.permutations(pool[: MAX_OBJECTS + 2], len(wanted)), key=agreement))


def _likeness(found: Found | None, group: Group) -> float:
    if found is None:
        return 0.0
    size = group.size is not None and _size_fits(found.diameter, group.size)
    return 0.1 + (found.color == group.color) + (found.shape == group.shape) + 0.5 * size
