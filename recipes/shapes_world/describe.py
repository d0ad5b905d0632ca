"""Captions that fit generated pictures: what the oracle reads in them, said in the grammar.

Most samples of a caption that miss it are right pictures of another one. Saying which makes several
preference questions out of one group of samples, where right and wrong differ in fine points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steer.shapes.oracle import judge
from steer.shapes.reading import Found, Reading
from steer.shapes.scenes import (
    RELATIONS,
    SIZE_THRESHOLD,
    SIZES,
    Group,
    Spec,
    is_held_out,
    relation_holds,
)


CLEAR_SIZE = 2.0
"""Pixels off `SIZE_THRESHOLD` from which a size is worth mentioning."""
CLEAR_RELATION = 0.7
"""Largest share of the offset along a relation that may lie across it, as in rendered scenes."""
MENTION, RELATE = 0.4, 0.7
"""How often a size or background, and a relation, is mentioned where it can be."""


def describe(reading: Reading, rng: np.random.Generator) -> Spec | None:
    """A spec that the picture meets, as `sample_spec` words them; None where none surely is.

    Combinations that are held out are never described.
    """
    found = list(reading.objects)
    if not found or reading.count != len(found) or reading.count > 3:
        return None
    kinds = list(dict.fromkeys((o.color, o.shape) for o in found))
    if len(kinds) > 1 and len(found) > 2:
        return None
    if len(kinds) == 2 and rng.random() < 0.5:
        found.reverse()
    members = [found] if len(kinds) == 1 else [[o] for o in found]
    background = reading.background if rng.random() < MENTION else None
    try:
        groups = tuple(_group(objects, rng) for objects in members)
        spec = Spec(groups, _relation(found, rng) if len(kinds) == 2 else None, background)
    except ValueError:  # something unclear, or outside this world
        return None
    return None if is_held_out(spec) or not judge(reading, spec).all_met else spec


def _group(objects: Sequence[Found], rng: np.random.Generator) -> Group:
    sizes = {SIZES[o.diameter > SIZE_THRESHOLD] for o in objects}
    clear = all(abs(o.diameter - SIZE_THRESHOLD) > CLEAR_SIZE for o in objects)
    size = sizes.pop() if len(sizes) == 1 and clear and rng.random() < MENTION else None
    if objects[0].color is None or objects[0].shape is None:
        raise ValueError("unclear")
    return Group(len(objects), objects[0].color, objects[0].shape, size)


def _relation(found: Sequence[Found], rng: np.random.Generator) -> str | None:
    a, b = found
    across, along = sorted((abs(b.x - a.x), abs(b.y - a.y)))
    if across >= CLEAR_RELATION * along or rng.random() >= RELATE:
        return None
    return next(r for r in RELATIONS if relation_holds(r, b.x - a.x, b.y - a.y))
