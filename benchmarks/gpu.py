"""Everything that only a GPU can say, in pieces of less than eight minutes: `make gpu`.

    python -m benchmarks.gpu             # what has not run on this card; goes on after a stop
    python -m benchmarks.gpu --list      # the pieces, and how each went on this card
    python -m benchmarks.gpu --only ops  # pieces with a word in their names, once more

The kernels' and rewards' tests come first, and nothing is timed where one fails. Every piece is a
command of its own that writes its results under the card's name (`benchmarks/results/*_h200.json`);
`gpu_<card>.json` notes which have run. Commit both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import common


LIMIT = 480
ROOT = Path(__file__).parents[1]
BATCHES, SIDES = (1, 4, 16, 64, 256), (512, 1024)


@dataclass(frozen=True)
class Piece:
    """One command of the campaign.

    Attributes:
        name: What it is called in the file of results and by `--only`.
        arguments: Of `python`.
        gate: Whether nothing after it is worth running where it fails.
    """

    name: str
    arguments: tuple[str, ...]
    gate: bool = False


def pieces() -> Iterator[Piece]:
    """All of them, in order: correctness, what kernels and scorers cost, what calls cost."""
    for folder in ("tests/kernels", "tests/unit/rewards"):
        yield Piece(f"correct {folder}", ("-m", "pytest", "-q", "-m", "gpu", folder), gate=True)
    kernels = ("-m", "benchmarks.kernels", "--parts")
    for batch in map(str, BATCHES):
        yield Piece(f"ops {batch}", (*kernels, "ops", "--batches", batch))
        for side in map(str, SIDES):
            setting = ("--batches", batch, "--sides", side)
            yield Piece(f"scorers {batch} of {side}", (*kernels, "scorers", *setting))
    for part in ("published", "noise", "quality"):
        yield Piece(part, (*kernels, part))
    yield Piece("overhead", ("benchmarks/overhead.py", "--calls", "100"))
    for model in ("sd15", "sdxl"):
        yield Piece(f"full size {model}", ("-m", "benchmarks.full_size", "--model", model))


def campaign(todo: Sequence[Piece], record: Path, again: bool, limit: float = LIMIT) -> int:
    """Run what `record` does not have as done, noting each piece as it ends.

    Returns:
        How many failed.
    """
    failed = 0
    for piece in todo:
        done = known(record)
        if not again and done.get(piece.name, {}).get("code") == 0:
            continue
        print(f"{piece.name}: python {' '.join(piece.arguments)}", file=sys.stderr, flush=True)
        code, seconds = run(piece, limit)
        entry = {"arguments": piece.arguments, "code": code, "seconds": round(seconds, 1)}
        common.write_json(record, done | {piece.name: entry})
        failed += bool(code)
        if code and piece.gate:
            print(f"{piece.name} failed: nothing is timed", file=sys.stderr)
            break
    return failed


def run(piece: Piece, limit: float) -> tuple[int | str, float]:
    """Exit code of a piece, or why it has none, and its seconds."""
    start = time.perf_counter()
    try:
        code = subprocess.run(
            [sys.executable, *piece.arguments], cwd=ROOT, timeout=limit, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        code = f"stopped after {limit:g} s"
    return code, time.perf_counter() - start


def known(record: Path) -> dict[str, Any]:
    """What has run on this card."""
    return json.loads(record.read_text()) if record.exists() else {}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--only", default="", help="a word of the names of pieces")
    args = parser.parse_args(arguments)
    todo = [piece for piece in pieces() if args.only in piece.name]
    if not todo:
        names = ", ".join(piece.name for piece in pieces())
        raise SystemExit(f"--only {args.only!r}: no piece has that in its name; there are {names}")
    record = common.RESULTS / f"gpu_{common.hardware()}.json"
    if args.list:
        done = known(record)
        for piece in todo:
            print(f"{done.get(piece.name, {}).get('code', 'not run')}\t{piece.name}")
        return
    if not torch.cuda.is_available():
        raise SystemExit("make gpu needs an NVIDIA GPU that torch sees (torch.cuda.is_available())")
    raise SystemExit(1 if campaign(todo, record, again=bool(args.only)) else 0)


if __name__ == "__main__":
    main()
