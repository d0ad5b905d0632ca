"""What commands show: lines, progress bars, and the command itself."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from typing import Any

from steer.core.files.names import visible


def say(what: Any) -> None:
    """Print text with rich's markup, or a table, on stdout."""
    from rich.console import Console

    Console().print(what)


def escape(text: object) -> str:
    """Text as it is, where markup is read; what a terminal would obey is written out."""
    from rich.markup import escape

    return escape(visible(text))


def progress(
    what: str, counts: Iterable[int], total: int, shown: bool = True, unit: str = "image"
) -> None:
    """Go through the work under a bar on stderr that is gone at the end.

    There is no bar where stderr is no terminal.

    Args:
        what: What is done to the images.
        counts: The work: as it goes on, how many more images are done.
        total: Images in all.
        shown: Whether there is a bar.
        unit: What is counted, if not images.
    """
    from tqdm.auto import tqdm

    hidden = None if shown else True  # None: only on a terminal
    with tqdm(desc=what, total=total, unit=unit, leave=False, disable=hidden) as bar:
        for count in counts:
            bar.update(count)


def command() -> str:
    """The command that was given, as a shell takes it."""
    return shlex.join(["steer", *sys.argv[1:]])
