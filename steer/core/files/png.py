"""PNG files with a text chunk that says how the image was made."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from steer.core.errors import RecordError, first_line
from steer.core.files.atomic import plain, write_atomic
from steer.core.files.text import read_json
from steer.core.files.versions import versions


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""What steer takes for images, by Pillow's names."""

_CHUNK = "steer"


def save_png(path: Path, image: Image.Image, data: Mapping[str, Any]) -> None:
    """Put `image` at `path` with `data` in a text chunk that `read` gives back."""
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", f"steer {versions().get('steer', '')}".strip())
    if "prompt" in data:
        chunks.add_itxt("Description", str(data["prompt"]))
    chunks.add_itxt(_CHUNK, json.dumps(plain(data), ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    write_atomic(path, buffer.getvalue())


def read(path: str | Path) -> dict[str, Any]:
    """The reproduction data in a PNG that steer wrote: prompt, seed, arguments, versions, ...

    Raises:
        RecordError: `path` cannot be read as an image, or carries no such data.
    """
    try:
        with open_image(path, ("PNG",)) as image:
            text = image.info.get(_CHUNK)
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordError(f"path={str(path)!r}: not a readable image ({error})") from error
    if not isinstance(text, str):
        raise RecordError(
            f"path={str(path)!r}: no reproduction data in this image; "
            "`steer sample` writes it into PNG files, and re-encoding an image drops it"
        )
    try:
        found = read_json(text)
    except ValueError as error:
        raise RecordError(f"path={str(path)!r}: its data is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise RecordError(f"path={str(path)!r}: its data is {type(found).__name__}, no object")
    return found


@contextmanager
def open_image(path: str | Path, formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    """An image file opened by Pillow, as one of `formats` whatever its name is.

    (Pillow knows many more, and hands some to other programs: EPS to Ghostscript.)

    Raises:
        OSError, SyntaxError, ValueError: It is none of them, damaged, no ordinary file (a pipe
            would be waited for), or larger than Pillow's limit (a decompression bomb).
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("no ordinary file")
    try:
        with Image.open(path, formats=list(formats)) as image:
            yield image
    except (OSError, SyntaxError, ValueError):
        raise
    except Exception as error:  # whatever the damage makes a decoder raise
        raise ValueError(f"damaged, or too large ({first_line(error)})") from error
