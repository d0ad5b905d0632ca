"""`steer tuned`: the public tuned checkpoints that `tuned=` knows by name."""

from __future__ import annotations

import typer

from steer.cli.exits import bad_input


_HEAD = ("name", "base", "kind", "guidance", "method", "hub id")


def tuned() -> None:
    """List the tuned checkpoints that have a short name.

    Any other is given by its hub id, or by the path of a folder or a safetensors file.

    Example: steer tuned | grep sdxl
    """
    with bad_input():
        from steer.driver.denoisers.checkpoints.known import KNOWN, is_bundled

        rows: list[tuple[str, ...]] = [_HEAD]
        for name, known in KNOWN.items():
            base = known.base.rpartition("/")[2]
            guidance = "-" if known.guidance is None else f"{known.guidance:g}"
            source = "(bundled)" if is_bundled(known) else str(known.source)
            rows.append((name, base, known.kind, guidance, known.method, source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
