"""A small residual network that finds the objects of a picture, and answers questions about them.

It looks at cells of 4x4 pixels, as CenterNet does (Zhou et al. 2019, arXiv:1904.07850): whether an
object's centre lies in the cell, and that object's colour, shape, size and place, each on its own,
so that a colour and a shape never seen together are still read. Counts and places are sums over
cells, so every answer has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from steer.shapes.scenes import AXES, BACKGROUNDS, COLORS, IMAGE_SIZE, SHAPES, SIZES, Group, Spec


CELL = 4
"""Pixels along a cell's side."""

CELLS = IMAGE_SIZE // CELL
MOST = 4
"""Counts are 0 to this; the last one stands for all that are larger."""

_WIDTHS = (32, 48, 96)
_HEADS = (1, len(COLORS) + 1, len(SHAPES) + 1, 1, 2)  # centre, colour, shape, size, offset
_BLUR = 1.0  # pixels: how far from a diagonal a relation is still uncertain


@dataclass(frozen=True)
class Seen:
    """What B pictures show, cell by cell (C cells of a 64x64 picture); all float32.

    Attributes:
        centers: `(B, C)`, the probability that an object's centre lies in the cell.
        colors, shapes: `(B, C, 7)`, `(B, C, 4)` log-probabilities; the last class is "unclear".
        large: `(B, C)`, logit of the object being large.
        places: `(B, C, 2)`, its centre x, y in pixels.
        ground: `(B, 4)` log-probabilities of the backgrounds; the last one is "unclear".
        tidy: `(B,)`, logit of there being no stray specks.
        sharpness: `()`, how far counts between whole numbers are from each.
    """

    centers: Tensor
    colors: Tensor
    shapes: Tensor
    large: Tensor
    places: Tensor
    ground: Tensor
    tidy: Tensor
    sharpness: Tensor

    def rows(self, index: Tensor) -> Seen:
        """The pictures of these numbers."""
        parts = {k: v if k == "sharpness" else v[index] for k, v in vars(self).items()}
        return Seen(**parts)

    def kinds(self) -> Tensor:
        """Expected objects of every colour and shape that are clear, `(B, 6, 3)`."""
        colors, shapes = self.colors.exp()[..., :-1], self.shapes.exp()[..., :-1]
        return torch.einsum("bn,bnc,bns->bcs", self.centers, colors, shapes)

    def counts(self, expected: Tensor) -> Tensor:
        """Log-probabilities of the counts 0 to `MOST` `(..., 5)`, from expected numbers `(...)`."""
        whole = torch.arange(MOST + 1, device=expected.device, dtype=expected.dtype)
        gap = (expected.clamp(max=MOST)[..., None] - whole) ** 2
        return (-self.sharpness * gap).log_softmax(-1)

    def of(self, group: Group) -> Tensor:
        """How much each cell holds an object of a group's colour and shape, `(B, C)`."""
        color, shape = list(COLORS).index(group.color), SHAPES.index(group.shape)
        return self.centers * (self.colors[..., color] + self.shapes[..., shape]).exp()


class Detector(nn.Module):
    """Pictures `(B, 3, 64, 64)` in [0, 1] to what they show; 0.6M parameters."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = _WIDTHS
        self.stem = nn.Sequential(_conv(3, a, 5, 2), nn.BatchNorm2d(a), nn.ReLU())
        self.fine = nn.Sequential(_Block(a, b, 2), _Block(b, b))
        self.coarse = nn.Sequential(_Block(b, c, 2), _Block(c, c), _Block(c, c))
        self.lift = nn.Conv2d(c, b, 1)
        self.join = nn.Sequential(_conv(b, b, 3), nn.BatchNorm2d(b), nn.ReLU())
        self.cells = nn.Conv2d(b, sum(_HEADS), 1)
        self.whole = nn.Linear(2 * c, len(BACKGROUNDS) + 2)
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        with torch.no_grad():  # objects are rare: begin with one in a hundred cells
            assert self.cells.bias is not None
            self.cells.bias[0] = -4.6

    def forward(self, images: Tensor) -> Seen:
        """Sizes other than 64x64 are resized."""
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
        fine = self.fine(self.stem((images - 0.5) / 0.25))
        coarse = self.coarse(fine)
        lifted = F.interpolate(self.lift(coarse), scale_factor=2.0, mode="nearest")
        cells = self.cells(self.join(fine + lifted)).flatten(2).transpose(1, 2).float()
        center, colors, shapes, large, offset = cells.split(_HEADS, -1)
        whole = self.whole(torch.cat([coarse.mean((2, 3)), coarse.amax((2, 3))], 1)).float()
        return Seen(
            center[..., 0].sigmoid(),
            colors.log_softmax(-1),
            shapes.log_softmax(-1),
            large[..., 0],
            cell_centers(images.device) + CELL * offset,
            whole[:, :-1].log_softmax(-1),
            whole[:, -1],
            self.sharpness,
        )


def cell_centers(device: torch.device | str = "cpu") -> Tensor:
    """x, y in pixels of the middle of every cell, row by row, `(C, 2)` float32."""
    middle = (torch.arange(CELLS, device=device, dtype=torch.float32) + 0.5) * CELL
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def answers(seen: Seen, spec: Spec) -> Tensor:
    """Log-probabilities that a caption's statements hold, `(B, questions)`, each at most 0.

    The questions: how many objects are there, without specks; how many of each group; are they all
    of its size; does the relation hold; is the background right: as far as the caption says so.
    """
    total = sum(group.count for group in spec.groups)
    number = seen.counts(seen.centers.sum(1))[:, total]
    found = [number + F.logsigmoid(seen.tidy)]
    kinds = seen.kinds()
    held = [seen.of(group) for group in spec.groups]
    for group, cells in zip(spec.groups, held, strict=True):
        kind = kinds[:, list(COLORS).index(group.color), SHAPES.index(group.shape)]
        found.append(seen.counts(kind)[:, group.count])
        if group.size is not None:
            sign = 1.0 if group.size == SIZES[1] else -1.0
            found.append((cells * F.logsigmoid(sign * seen.large)).sum(1))
    if spec.relation is not None:
        a, b = (_middle(cells, seen.places) for cells in held)
        found.append(_related(spec.relation, b - a))
    if spec.background is not None:
        found.append(seen.ground[:, list(BACKGROUNDS).index(spec.background)])
    return torch.stack(found, 1)


def load_detector(path: str | Path, device: torch.device | str = "cpu") -> Detector:
    """The detector of a safetensors file, float32, in evaluation mode and without gradients.

    Raises:
        RuntimeError, safetensors.SafetensorError: The file is damaged or holds another network.
    """
    model = Detector()
    model.load_state_dict({k: _wide(v) for k, v in load_file(path).items()})
    return model.requires_grad_(False).eval().to(device)


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _middle(cells: Tensor, places: Tensor) -> Tensor:
    """Where a group's object is, in pixels, `(B, 2)`."""
    share = cells / cells.sum(1, keepdim=True).clamp(min=1e-6)
    return (share[..., None] * places).sum(1)


def _related(relation: str, offset: Tensor) -> Tensor:
    axis, sign = AXES[relation]
    lead = sign * offset[:, axis] - offset[:, 1 - axis].abs()
    return F.logsigmoid(lead / _BLUR)


def _conv(inner: int, outer: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, size, stride, size // 2, bias=False)


class _Block(nn.Module):
    """The basic block of a ResNet (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.norm1 = _conv(inner, outer, 3, stride), nn.BatchNorm2d(outer)
        self.second, self.norm2 = _conv(outer, outer, 3), nn.BatchNorm2d(outer)
        same = inner == outer and stride == 1
        self.skip = nn.Identity() if same else _conv(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(y)) + self.skip(x))
