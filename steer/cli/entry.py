"""The program `steer`: an interrupt is one line at any moment, also while modules are imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any


INTERRUPTED = 130
_SOON = 0.05


def run() -> None:
    """Run the command line."""
    sys.unraisablehook = _once_more
    try:
        from steer.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("steer: interrupted; the same command continues\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # modules that are half imported need not be taken down


def _once_more(lost: Any) -> None:
    """Python loses an interrupt that comes in a callback, as imports have them: send it again."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    again = threading.Timer(_SOON, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


if __name__ == "__main__":
    run()
