"""A second training aid: what a picture holds, and what a caption says, read off one embedding.

A linear head shared by images and captions predicts the inventory from the embedding, so that both
towers learn early that pictures and sentences are about counted, coloured, placed objects. The head
is thrown away after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steer.shapes.scenes import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Scene, Spec


KINDS = {(c, s): i * len(SHAPES) + j for i, c in enumerate(COLORS) for j, s in enumerate(SHAPES)}
COUNTS = 4
UNSAID = -100  # cross_entropy's ignore_index
ABSENT_WEIGHT = 0.15


@dataclass
class Inventory:
    """Targets of B pictures or captions, int64; `UNSAID` where nothing is known.

    Attributes:
        counts: `(B, kinds)`, 0 to 3 objects of every (colour, shape).
        sizes: `(B, kinds)`, index into `SIZES`.
        relation: `(B,)`, index into `RELATIONS`: the kind of lower number against the other.
        background: `(B,)`, index into `BACKGROUNDS`.
    """

    counts: Tensor
    sizes: Tensor
    relation: Tensor
    background: Tensor

    @staticmethod
    def empty(rows: int) -> Inventory:
        return Inventory(
            torch.zeros(rows, len(KINDS), dtype=torch.long),
            torch.full((rows, len(KINDS)), UNSAID),
            torch.full((rows,), UNSAID),
            torch.full((rows,), UNSAID),
        )

    def to(self, device: torch.device | str) -> Inventory:
        """The same on a device."""
        parts = (self.counts, self.sizes, self.relation, self.background)
        return Inventory(*(part.to(device) for part in parts))


def of_specs(specs: Sequence[Spec]) -> Inventory:
    """What captions say."""
    found = Inventory.empty(len(specs))
    for row, spec in enumerate(specs):
        kinds = [KINDS[g.color, g.shape] for g in spec.groups]
        for kind, group in zip(kinds, spec.groups, strict=True):
            found.counts[row, kind] = group.count
            if group.size:
                found.sizes[row, kind] = SIZES.index(group.size)
        if spec.relation:
            relation = RELATIONS.index(spec.relation)
            found.relation[row] = relation if kinds[0] < kinds[1] else relation ^ 1
        if spec.background:
            found.background[row] = list(BACKGROUNDS).index(spec.background)
    return found


def of_scenes(scenes: Sequence[Scene]) -> Inventory:
    """What pictures hold; relations only between two objects of different kinds."""
    found = Inventory.empty(len(scenes))
    for row, scene in enumerate(scenes):
        placed = sorted(scene.shapes, key=lambda s: KINDS[s.color, s.kind])
        kinds = [KINDS[s.color, s.kind] for s in placed]
        for kind, shape in zip(kinds, placed, strict=True):
            found.counts[row, kind] += 1
            found.sizes[row, kind] = SIZES.index(shape.size)
        if len(placed) == 2 and kinds[0] != kinds[1]:
            dx, dy = placed[0].x - placed[1].x, placed[0].y - placed[1].y
            relation = ("left of" if dx < 0 else "right of") if abs(dx) > abs(dy) else ""
            relation = relation or ("above" if dy < 0 else "below")
            found.relation[row] = RELATIONS.index(relation)
        found.background[row] = list(BACKGROUNDS).index(scene.background)
    return found


class InventoryHead(nn.Module):
    """Linear readout of an embedding `(B, dim)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        sizes = (len(KINDS) * COUNTS, len(KINDS) * len(SIZES), len(RELATIONS), len(BACKGROUNDS))
        self.split = sizes
        self.linear = nn.Linear(dim, sum(sizes))

    def loss(self, embedding: Tensor, target: Inventory) -> Tensor:
        """Sum of the parts' cross-entropies; kinds that are absent weigh less."""
        counts, sizes, relation, background = self.linear(embedding).float().split(self.split, -1)
        weight = torch.tensor([ABSENT_WEIGHT, 1.0, 1.0, 1.0], device=counts.device)
        parts = [
            F.cross_entropy(
                counts.unflatten(-1, (-1, COUNTS)).flatten(0, 1),
                target.counts.flatten(),
                weight=weight,
            ),
            _known(sizes.unflatten(-1, (-1, len(SIZES))).flatten(0, 1), target.sizes.flatten()),
            _known(relation, target.relation),
            _known(background, target.background),
        ]
        return torch.stack(parts).sum()


def _known(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy where the target is known; 0 where it nowhere is."""
    total = F.cross_entropy(logits, target, ignore_index=UNSAID, reduction="sum")
    return total / (target != UNSAID).sum().clamp(min=1)
