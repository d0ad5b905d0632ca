"""PNG files with a text chunk that says how the image was made."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from steer.core.errors import RecordError
from steer.core.files.atomic import plain, write_atomic
from steer.core.files.versions import versions


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
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.info.get(_CHUNK)
    except (OSError, SyntaxError) as error:
        raise RecordError(f"path={str(path)!r}: not a readable image ({error})") from error
    if not isinstance(text, str):
        raise RecordError(
            f"path={str(path)!r}: no reproduction data in this image; "
            "`steer sample` writes it into PNG files, and re-encoding an image drops it"
        )
    return json.loads(text)
