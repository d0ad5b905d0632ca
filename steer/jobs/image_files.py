"""The image files under some paths, with what their headers say; nothing is decoded yet."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer.core.files.names import natural_key


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_KINDS = "png, jpg, jpeg, webp, bmp, tif, tiff"


@dataclass(frozen=True)
class ImageFile:
    """An image file, unopened but for its header.

    Attributes:
        path: As the user named it, or its folder.
        stamp: Size in bytes and modification time: another one means other content.
        size: Width and height by the header; None when that cannot be read.
        prompt: What the file was drawn from, where `steer sample` wrote it down.
        error: Why the header cannot be read, or None.
    """

    path: str
    stamp: str
    size: tuple[int, int] | None = None
    prompt: str | None = None
    error: str | None = None

    @property
    def absolute(self) -> str:
        """The path by which the file is known wherever the command is run from."""
        return os.path.abspath(self.path)


def find_images(paths: Sequence[Path], leave_out: Collection[Path] = ()) -> list[ImageFile]:
    """All images that `paths` name: files, and folders with all that is below them.

    Sorted by path, numbers in names by value (`2.png` before `10.png`), each file once. Hidden
    files, `leave_out`, and sheets that steer made of other images are passed over in folders.

    Raises:
        ValueError: A path that does not exist, is no image, or a folder without any.
    """
    skip = {os.path.abspath(path) for path in leave_out}
    named: dict[str, tuple[str, bool]] = {}
    for path in paths:
        for found, explicit in _under(path, skip):
            named.setdefault(os.path.abspath(found), (found, explicit))
    order = sorted(named.values(), key=lambda item: natural_key(item[0]))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        seen = list(pool.map(lambda item: _look(*item), order))
    images = [image for image in seen if image is not None]
    if not images:
        shown = ", ".join(repr(str(path)) for path in paths)
        raise ValueError(f"paths={shown}: no images found; name image files ({_KINDS}) or folders")
    return images


def _under(path: Path, skip: Collection[str]) -> Iterator[tuple[str, bool]]:
    """The image files of one path, and whether it names them itself."""
    path = path.expanduser()
    if path.is_dir():
        files = [name for name in _walk(path) if os.path.abspath(name) not in skip]
        if not files:
            raise ValueError(f"path={str(path)!r}: no images found in this folder ({_KINDS})")
        yield from ((name, False) for name in files)
    elif not path.exists():
        raise ValueError(f"path={str(path)!r}: does not exist; name image files or folders")
    elif path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path={str(path)!r}: not an image by its name; there are {_KINDS}")
    else:
        yield str(path), True


def _walk(folder: Path) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield os.path.join(here, name)


def _look(path: str, explicit: bool) -> ImageFile | None:
    """What the header says; None for a sheet made by steer that nobody named."""
    from steer.core.files.png import open_image

    stamp = ""
    try:
        status = os.stat(path)
        stamp = f"{status.st_size}-{status.st_mtime_ns}"
        with open_image(path) as image:
            size, kind = image.size, image.format
    except (OSError, SyntaxError, ValueError) as error:
        return ImageFile(path, stamp, error=reason(error, path))
    data = _png_data(path) if kind == "PNG" else None
    if data is not None and "prompt" not in data and not explicit:
        return None
    prompt = data.get("prompt") if data else None
    return ImageFile(path, stamp, size, prompt if isinstance(prompt, str) else None)


def _png_data(path: str) -> dict[str, Any] | None:
    """The data that steer wrote into a PNG, if it did."""
    from steer.core.files.png import read

    try:
        data = read(path)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def reason(error: Exception, path: str) -> str:
    """Why an image cannot be read, in a few words and without its path."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image, or a damaged one"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.replace(repr(path), "").split())
