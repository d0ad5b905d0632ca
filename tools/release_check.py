"""What a release must pass: its files, their metadata, a fresh installation, its version.

    make release-check

Builds the source distribution and the wheel into `build/release`, checks them, installs the wheel
with its dependencies into an empty environment, and draws with it. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path


ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "release"
RESULT = ROOT / "benchmarks" / "results" / "newcomer.json"
NEWCOMER, TIMES = 15.0, 2.0
"""Seconds that the first steered picture may take after the installation; on a slow machine, so
many times those that diffusers takes to draw a plain picture with the same small pipeline."""
FIRST = (
    "sample",
    "a red circle left of a blue square",
    *("--pipeline", "shapes", "--reward", "shapes", "--compute", "4", "--device", "cpu"),
)

PLAIN = """
from importlib.util import find_spec
from pathlib import Path
from diffusers import StableDiffusionPipeline
home = Path(find_spec("steer").origin).parent / "shapes" / "weights" / "pipeline"
pipe = StableDiffusionPipeline.from_pretrained(home)
pipe("a red circle left of a blue square", num_inference_steps=20).images[0].save("plain.png")
"""


class Failed(Exception):
    """Something that a release must not have, in one sentence."""


def call(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return what it printed; raise Failed where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise Failed(f"{' '.join(words[:4])} ... ended with {done.returncode}:\n{said}")
    return done.stdout


def version(root: Path = ROOT) -> str:
    """The version to be released: the same in every file that names one.

    Raises:
        Failed: The files differ, or the changelog's newest entry has no date.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text("utf-8"), re.M)
    newest = re.search(r"^## (\S+) \((.+)\)$", (root / "CHANGELOG.md").read_text("utf-8"), re.M)
    named = {
        "pyproject.toml": project,
        "CITATION.cff": cited and cited[1],
        "CHANGELOG.md": newest and newest[1],
    }
    if len(set(named.values())) > 1:
        told = ", ".join(f"{name} has {value}" for name, value in named.items())
        raise Failed(f"the files do not name one version: {told}")
    if newest is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", newest[2]):
        raise Failed(f"CHANGELOG.md: give {project} its date in place of ({newest[2]})")
    return project


def untagged(tag: str) -> None:
    """Raise Failed where the version has been released already."""
    if tag in call("git", "tag").split():
        raise Failed(f"{tag} is a tag already: raise the version in pyproject.toml")


def built(uv: Path, scratch: Path) -> Path:
    """The wheel, after both files are built, checked and found to agree."""
    shutil.rmtree(OUT, ignore_errors=True)
    call(uv, "build", "--python", sys.executable, "--out-dir", OUT, ROOT)
    (wheel,), (source,) = OUT.glob("*.whl"), OUT.glob("*.tar.gz")
    call(uv, "tool", "run", "twine", "check", "--strict", wheel, source)
    call(uv, "build", "--wheel", "--python", sys.executable, "--out-dir", scratch / "again", source)
    (again,) = (scratch / "again").glob("*.whl")
    if (lost := files(wheel) ^ files(again)) != set():
        raise Failed(f"wheel and source distribution differ in {sorted(lost)[:5]}")
    return wheel


def files(wheel: Path) -> set[str]:
    """The names in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def newcomer(uv: Path, wheel: Path, scratch: Path) -> tuple[float, float]:
    """Seconds from an installation in an empty environment to the first steered picture.

    And those of a plain one, by diffusers alone in the same environment.
    """
    home = scratch / "env"
    call(uv, "venv", "--python", sys.executable, home)
    call(uv, "pip", "install", "--compile-bytecode", "--python", home / "bin" / "python", wheel)
    start = time.perf_counter()
    call(home / "bin" / "steer", *FIRST, "--out", "first", cwd=scratch)
    seconds = time.perf_counter() - start
    if not list((scratch / "first").rglob("*.png")):
        raise Failed("steer sample ended well in a new environment, and drew nothing")
    start = time.perf_counter()
    call(home / "bin" / "python", "-c", PLAIN, cwd=scratch)
    return seconds, time.perf_counter() - start


def keep(seconds: float, plain: float) -> None:
    """Write down what the stopwatch said, with the machine."""
    found = {
        "command": "make release-check",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "steered_seconds": round(seconds, 1),
        "plain_seconds": round(plain, 1),
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--uv", type=Path, required=True, help="the uv to build and install with")
    uv = parser.parse_args().uv.absolute()
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheel = built(uv, Path(folder))
            print(f"{wheel.relative_to(ROOT)}: built, and its metadata are right")
            seconds, plain = newcomer(uv, wheel, Path(folder))
            keep(seconds, plain)
            print(f"the first steered picture, {seconds:.1f} s after the installation")
            print(f"a plain one by diffusers alone, {plain:.1f} s")
            if seconds > max(NEWCOMER, TIMES * plain):
                raise Failed(f"that is more than {NEWCOMER:g} s, and {TIMES:g} times the plain one")
        tag = f"v{version()}"
        untagged(tag)
    except Failed as error:
        raise SystemExit(f"release-check: {error}") from None
    print(f"{tag} may be released")


if __name__ == "__main__":
    main()
