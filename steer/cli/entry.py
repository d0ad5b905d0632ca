"""The program `steer`: an interrupt is one line at any moment, also while modules are imported."""

from __future__ import annotations

import os
import sys


INTERRUPTED = 130


def run() -> None:
    """Run the command line."""
    try:
        from steer.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("steer: interrupted; the same command continues\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # modules that are half imported need not be taken down


if __name__ == "__main__":
    run()
