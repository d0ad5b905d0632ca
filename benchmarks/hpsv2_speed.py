"""What does a score cost? `steer.reward("hpsv2")` against `hpsv2.score`, on the same weights.

    python benchmarks/hpsv2_speed.py --hpsv2-python hps/bin/python --threads 1

Both score the same images with one random checkpoint of the published layout (float16, pickled
under `state_dict`), each run in a process of its own, imports not counted. Two calls are timed: the
first, in which both load their weights, and the same call again. No prompt or image changes between
them, so that steer has the prompt's features in its cache; `another prompt` is the call without.

`hpsv2` 1.2.0 does not import as published. It is repaired only as far as needed to run, in an
environment of its own that borrows this one's packages, torch among them:

    python -m venv hps
    hps/bin/pip install --no-deps hpsv2==1.2.0 clint==0.5.1 args==0.1.0
    ours=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    theirs=$(hps/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    echo "$ours" > "$theirs/borrowed.pth"
    cp "$ours/open_clip/bpe_simple_vocab_16e6.txt.gz" "$theirs/hpsv2/src/open_clip/"

1. `--no-deps`: its requirements hold protobuf below 4, pytest at 7.2.0 and pytest-split at 0.8.0.
   Of them all, what `score` imports and a steer environment lacks is clint (and clint's args).
2. The wheel lacks its vocabulary, so that importing it fails; open_clip has the same file.
3. Its model factory imports `turtle`, hence tkinter. Where Python has none, `hpsv2_side.py` puts an
   empty module in its place.
4. Nothing is downloaded: `huggingface_hub.hf_hub_download` returns the local checkpoint, for the
   scorer and for the base model that the package loads and then overwrites.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np


SCRIPT = Path(__file__).with_name("hpsv2_side.py")
COUNTS = (1, 16)
ARMS = (("public", "float32"), ("steer", "float32"), ("steer", "bfloat16"))
TOLERANCE = 1e-5
"""Largest difference of the float32 scores at which the two sides compute the same thing."""


def run_side(python: str, side: str, folder: Path, *options: str) -> dict[str, Any]:
    """What `hpsv2_side.py` printed, run by `python`.

    Raises:
        SystemExit: It failed; the end of its error output is passed on.
    """
    settings = {"HF_HUB_OFFLINE": "1", "HPS_ROOT": str(folder / "hps_root")}
    done = subprocess.run(
        [python, str(SCRIPT), side, str(folder), *options],
        capture_output=True,
        text=True,
        env=os.environ | settings,
    )
    if done.returncode:
        end = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise SystemExit(
            f"the side {side!r} failed under {python!r}:\n{end}\n"
            f"The head of {Path(__file__).name} says how its environment is made."
        )
    return json.loads(done.stdout.splitlines()[-1])


def measure(pythons: dict[str, str], folder: Path, threads: int) -> list[dict[str, Any]]:
    """Both sides with 1 and 16 images, one process at a time."""
    runs = []
    for count in COUNTS:
        for side, dtype in ARMS:
            options = ["--images", count, "--dtype", dtype, "--threads", threads]
            load = os.getloadavg()[0]
            run = run_side(pythons[side], side, folder, *map(str, options))
            runs.append(run | {"images": count, "load_average_before": round(load, 2)})
            print(_line(runs[-1]), file=sys.stderr, flush=True)
    return runs


def _line(run: dict[str, Any]) -> str:
    seconds = ", ".join(f"{name} {call['seconds']:.2f} s" for name, call in run["calls"].items())
    return f"{run['threads']} threads, {run['side']} {run['dtype']} x {run['images']}: {seconds}"


def pairs(runs: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every public run with each of steer's of equal images and threads."""
    for public in (run for run in runs if run["side"] == "public"):
        for ours in (run for run in runs if run["side"] == "steer"):
            if (ours["images"], ours["threads"]) == (public["images"], public["threads"]):
                yield public, ours


def compare(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Public over steer, for the first and the second call of every pair of runs."""
    rows = []
    for call in ("first", "second"):
        for public, ours in pairs(runs):
            theirs, mine, count = public["calls"][call], ours["calls"][call], ours["images"]
            row = {"threads": ours["threads"], "images": count, "call": call}
            row |= {
                "steer_dtype": ours["dtype"],
                "public_seconds_per_image": round(theirs["seconds"] / count, 4),
                "steer_seconds_per_image": round(mine["seconds"] / count, 4),
                "ratio": round(theirs["seconds"] / mine["seconds"], 3),
                "cpu_seconds_ratio": round(theirs["cpu_seconds"] / mine["cpu_seconds"], 3),
            }
            for name in ("checkpoint_loads", "peak_rss_gib"):
                row |= {f"public_{name}": theirs[name], f"steer_{name}": mine[name]}
            rows.append(row)
    return rows


def agreement(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per precision of steer's weights, the largest difference to the public scores of all calls
    and the spread of those scores over the 16 images.

    Raises:
        SystemExit: The float32 scores differ, so that the times do not compare the same thing.
    """
    found: dict[str, dict[str, float]] = {}
    for public, ours in pairs(runs):
        entry = found.setdefault(ours["dtype"], {"largest_difference": 0.0, "spread": 0.0})
        for name, call in public["calls"].items():
            scores, others = call["scores"], ours["calls"][name]["scores"]
            gap = np.abs(np.subtract(scores, others)).max()  # NaN if any is
            worst = float(np.maximum(entry["largest_difference"], gap))
            entry["largest_difference"] = round(worst, 9)
        scores = public["calls"]["first"]["scores"]
        entry["spread"] = max(entry["spread"], round(max(scores) - min(scores), 6))
    if not (gap := found["float32"]["largest_difference"]) <= TOLERANCE:
        raise SystemExit(f"the float32 scores differ by {gap:.2g}, more than {TOLERANCE:.0g}")
    return found


def table(result: dict[str, Any]) -> str:
    """Public against steer in float32 and bfloat16, as Markdown; a table per number of threads."""
    return "\n\n".join(
        _table(result["comparison"], threads)
        for threads in dict.fromkeys(row["threads"] for row in result["comparison"])
    )


def _table(comparison: list[dict[str, Any]], threads: int) -> str:
    lines = [
        f"| CPU, {threads} thread{'s' * (threads > 1)} | `hpsv2` 1.2.0, s/image | steer, s/image "
        "| ratio | steer bfloat16, s/image | ratio | checkpoint loads | peak memory, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [row for row in comparison if row["threads"] == threads]
    halves = [row for row in rows if row["steer_dtype"] == "bfloat16"]
    for row, half in zip((r for r in rows if r not in halves), halves, strict=True):
        plural = "s" * (row["images"] > 1)
        lines.append(
            f"| {row['images']} image{plural}, {row['call']} call "
            f"| {row['public_seconds_per_image']:.2f} "
            f"| {row['steer_seconds_per_image']:.2f} | {row['ratio']:.2f}x "
            f"| {half['steer_seconds_per_image']:.2f} | {half['ratio']:.2f}x "
            f"| {row['public_checkpoint_loads']} / {row['steer_checkpoint_loads']} "
            f"| {row['public_peak_rss_gib']:.1f} / {row['steer_peak_rss_gib']:.1f} "
            f"/ {half['steer_peak_rss_gib']:.1f} |"
        )
    return "\n".join(lines)


def _without_place(command: str, python: Path) -> str:
    """The command with no more of the interpreter's path than its environment's folder."""
    shown = {str(python), os.path.relpath(python), os.path.abspath(python)}
    return " ".join(
        "/".join(python.parts[-3:]) if word in shown else word for word in command.split(" ")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=common.headline(__doc__))
    parser.add_argument("--hpsv2-python", type=Path, required=True, help="see the file's head")
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="0 is torch's own")
    parser.add_argument("--folder", type=Path, help="scratch of 2 GB; default a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and images there")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: checks the study itself")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    python = os.path.abspath(args.hpsv2_python)  # not resolved: an environment's is a link
    scratch = args.folder or Path(tempfile.mkdtemp(prefix="hpsv2_speed_"))
    folder = scratch / "hpsv2_speed"
    pythons = {"public": python, "steer": sys.executable}
    provenance = common.provenance()
    del provenance["threads"]  # of this process; every run holds its own
    provenance["command"] = _without_place(provenance["command"], args.hpsv2_python)
    name = f"hpsv2_speed{'_tiny' if args.tiny else ''}_{common.hardware()}.json"
    runs: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    try:
        # Made by another process: a child's peak memory would start at the size of this one.
        made = run_side(sys.executable, "make", folder, *(["--tiny"] if args.tiny else []))
        for threads in args.threads:  # a study that is cut short leaves what it has
            runs += measure(pythons, folder, threads)
            result = {
                "study": "hpsv2_speed",
                **provenance,
                "model": made,
                "agreement": agreement(runs),
                "comparison": compare(runs),
                "runs": runs,
            }
            common.write_json(args.out or common.RESULTS / name, result)
    finally:
        if not args.keep:
            shutil.rmtree(folder if args.folder else scratch, ignore_errors=True)
    print(table(result))


if __name__ == "__main__":
    main()
