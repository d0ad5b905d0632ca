"""A picture of pictures: columns with a caption, one image per row, and a verdict on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont


_INK, _SOFT, _PAPER = (32, 30, 26), (107, 103, 94), (255, 255, 255)
_GOOD, _BAD = (28, 122, 74), (176, 58, 34)
_CELL, _GAP, _PAD, _FONT, _LINE = 256, 20, 36, 24, 31
_PER_ROW, _LABELS = 8, 128


@dataclass(frozen=True)
class Column:
    """A caption, its images from top to bottom, and whether each is right (None: not judged)."""

    caption: str
    images: tuple[Image.Image, ...]
    marks: tuple[bool | None, ...]


def grid(columns: Sequence[Column], rows: Sequence[str]) -> Image.Image:
    """The columns side by side, eight at most in a band; `rows` names their rows."""
    if not columns:
        raise ValueError("columns=[]: nothing to show")
    wide = min(len(columns), _PER_ROW)
    bands = [columns[i : i + _PER_ROW] for i in range(0, len(columns), _PER_ROW)]
    font = ImageFont.load_default(_FONT)
    words = [[_wrap(c.caption, font) for c in band] for band in bands]
    heads = [max(map(len, texts)) * _LINE + 14 for texts in words]
    tall = len(rows) * (_CELL + _GAP)
    size = (
        2 * _PAD + _LABELS + wide * (_CELL + _GAP) - _GAP,
        2 * _PAD + sum(heads) + len(bands) * (tall + _PAD) - _PAD - _GAP,
    )
    canvas = Image.new("RGB", size, _PAPER)
    top = _PAD
    for band, texts, head in zip(bands, words, heads, strict=True):
        _band(canvas, top, band, texts, head, rows)
        top += head + tall + _PAD
    return canvas


def _band(
    canvas: Image.Image,
    top: int,
    band: Sequence[Column],
    texts: Sequence[Sequence[str]],
    head: int,
    rows: Sequence[str],
) -> None:
    """One row of columns, captions standing on their images."""
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    for r, name in enumerate(rows):
        middle = top + head + r * (_CELL + _GAP) + _CELL // 2
        draw.text((_PAD, middle), name, fill=_SOFT, font=ImageFont.load_default(28), anchor="lm")
    for c, (column, lines) in enumerate(zip(band, texts, strict=True)):
        left = _PAD + _LABELS + c * (_CELL + _GAP)
        for k, line in enumerate(lines):
            y = top + head - 14 - (len(lines) - k) * _LINE
            draw.text((left, y), line, fill=_INK, font=font)
        for r, (image, mark) in enumerate(zip(column.images, column.marks, strict=True)):
            y = top + head + r * (_CELL + _GAP)
            canvas.paste(_fit(image), (left, y))
            draw.rectangle((left, y, left + _CELL - 1, y + _CELL - 1), outline=(200, 196, 188))
            if mark is not None:
                badge = _badge(mark)
                canvas.paste(badge, (left + _CELL - 40, y + _CELL - 40), badge)


def _fit(image: Image.Image) -> Image.Image:
    """The image at the cell's size: whole pixels when it is small, smooth otherwise."""
    whole = max(image.size) <= _CELL and _CELL % max(image.size) == 0
    how = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((_CELL, _CELL), how)


def _badge(good: bool, size: int = 46) -> Image.Image:
    """A tick or a cross on a disc, with an outline that parts it from any picture."""
    s = size * 4
    badge = Image.new("RGBA", (s, s))
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, s - 1, s - 1), fill=_PAPER)
    draw.ellipse((12, 12, s - 13, s - 13), fill=_GOOD if good else _BAD)
    strokes = (
        [((0.29, 0.52), (0.44, 0.67), (0.72, 0.36))]
        if good
        else [((0.34, 0.34), (0.66, 0.66)), ((0.66, 0.34), (0.34, 0.66))]
    )
    for stroke in strokes:
        points = [(x * s, y * s) for x, y in stroke]
        draw.line(points, fill=_PAPER, width=17, joint="curve")
    return badge.resize((size, size), Image.Resampling.LANCZOS)


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """`text` in lines no wider than a cell."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > _CELL:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
