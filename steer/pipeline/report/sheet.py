"""A contact sheet: images in order, each with its scores and its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from steer.core.files.png import open_image
from steer.core.files.score_log import Row, mean_scores, rank_rows, score_text


MAX_CELLS = 120
"""More images than this are cut in the middle: the sheet shows the first and the last."""

_INK, _SOFT, _FAINT, _PAPER = (32, 30, 26), (107, 103, 94), (226, 223, 216), (255, 255, 255)
_CELL, _GAP, _PAD, _TITLE, _FONT, _SMALL = 224, 24, 40, 30, 22, 17
_MAT = (247, 246, 243)


@dataclass(frozen=True)
class Cell:
    """One image file, its place from 1, its scores as text by what they are called, its name."""

    path: Path
    rank: int
    scores: Mapping[str, str]
    name: str


def contact_sheet(cells: Sequence[Cell], title: str, subtitle: str = "") -> Image.Image:
    """The images side by side under a title, row by row, aspect ratios kept.

    Args:
        cells: In the order to show; beyond `MAX_CELLS` the middle is left out and counted.
        title: First line.
        subtitle: Second line, smaller; what is too long for the page is cut.

    Raises:
        ValueError: No cells.
        OSError: An image that cannot be read.
    """
    if not cells:
        raise ValueError("cells=[]: nothing to show")
    shown, left_out = _cut(cells)
    if left_out:
        best, worst = MAX_CELLS - MAX_CELLS // 2, MAX_CELLS // 2
        more = f"the first {best} and the last {worst} of {len(cells)}"
        subtitle = f"{subtitle}  ·  {more}" if subtitle else more
    columns = min(len(shown), max(3, math.ceil(math.sqrt(1.4 * len(shown)))))
    text = max(len(cell.scores) for cell in shown) * (_FONT + 6) + _SMALL + 22
    head = _TITLE + (_SMALL + 14 if subtitle else 0) + 30
    step = (_CELL + _GAP, _CELL + text + _GAP)
    wide = max(columns * step[0] - _GAP, 3 * step[0] - _GAP)
    rows = math.ceil(len(shown) / columns)
    canvas = Image.new("RGB", (2 * _PAD + wide, 2 * _PAD + head + rows * step[1] - _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_PAD, _PAD - 6), _fitting(title, wide, _TITLE), _INK, _font(_TITLE))
    draw.text((_PAD, _PAD + _TITLE + 10), _fitting(subtitle, wide, _SMALL), _SOFT, _font(_SMALL))
    for k, cell in enumerate(shown):
        row, column = divmod(k, columns)
        _draw(canvas, draw, cell, _PAD + column * step[0], _PAD + head + row * step[1])
    return canvas


def score_sheet(rows: Sequence[Row], rewards: Sequence[str]) -> Image.Image:
    """The contact sheet of scored images, by the first reward; a common prompt stands on top."""
    called = rewards if len(rewards) > 1 else [""]
    cells = []
    for rank, row in enumerate(rank_rows(rows, rewards[0]), 1):
        texts = (_number(row.scores[reward]) for reward in rewards)
        scores = dict(zip(called, texts, strict=True))
        cells.append(Cell(Path(row.path), rank, scores, Path(row.path).name))
    means = [f"{name} {_number(m)}" for name, m in mean_scores(rows, rewards).items()]
    count = "1 image" if len(rows) == 1 else f"{len(rows)} images"
    prompts = {row.prompt for row in rows}
    subtitle = prompts.pop() if len(prompts) == 1 else f"{len(prompts)} prompts"
    return contact_sheet(
        cells, f"{count} by {rewards[0]}", f"mean {', '.join(means)}  ·  {subtitle}"
    )


def _cut(cells: Sequence[Cell]) -> tuple[list[Cell], int]:
    if len(cells) <= MAX_CELLS:
        return list(cells), 0
    worst = MAX_CELLS // 2
    return [*cells[: MAX_CELLS - worst], *cells[-worst:]], len(cells) - MAX_CELLS


def _draw(canvas: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, left: int, top: int) -> None:
    """One image on its mat, its place and scores, its name."""
    mat = (left, top, left + _CELL - 1, top + _CELL - 1)
    draw.rectangle(mat, fill=_MAT)
    image = _thumbnail(cell.path)
    canvas.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))
    draw.rectangle(mat, outline=_FAINT)
    y = top + _CELL + 8
    for k, (name, score) in enumerate(cell.scores.items()):
        draw.text((left, y + _FONT), score, _SOFT if k else _INK, _font(_FONT), anchor="ls")
        gap = _font(_FONT).getlength(score) + 8
        room = _CELL - gap - (0 if k else _font(_FONT).getlength(f"{cell.rank}") + 8)
        text = _fitting(name, room, _SMALL)
        draw.text((left + gap, y + _FONT), text, _SOFT, _font(_SMALL), anchor="ls")
        y += _FONT + 6
    place = (left + _CELL, top + _CELL + 8 + _FONT)
    draw.text(place, f"{cell.rank}", _SOFT, _font(_FONT), anchor="rs")
    draw.text((left, y + 2), _fitting(cell.name, _CELL, _SMALL, "middle"), _SOFT, _font(_SMALL))


def _thumbnail(path: Path) -> Image.Image:
    """The image within a cell: whole pixels when it is small, smooth otherwise."""
    with open_image(path) as file:
        file.draft("RGB", (2 * _CELL, 2 * _CELL))  # a JPEG is decoded no larger than needed
        image = ImageOps.exif_transpose(file).convert("RGB")
    scale = _CELL / max(image.size)
    if scale >= 2:
        scale, how = math.floor(scale), Image.Resampling.NEAREST
    else:
        how = Image.Resampling.LANCZOS
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), how)


def _number(value: float | None) -> str:
    """A score in characters that the font has: it lacks dashes and the minus sign."""
    return "n/a" if value is None else score_text(value).replace("−", "-")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitting(text: str, width: float, size: int, cut: str = "end") -> str:
    """`text`, shortened with an ellipsis where it is wider than `width` pixels."""
    font, kept = _font(size), len(text)
    short = text
    while kept > 1 and font.getlength(short) > width:
        kept -= 1
        tail = kept // 2 if cut == "middle" else 0
        short = text[: kept - tail].rstrip() + "…" + (text[-tail:] if tail else "")
    return short
