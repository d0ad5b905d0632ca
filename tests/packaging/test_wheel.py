"""The wheel: what is in it, and that it draws from a fresh environment without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SOURCES = ("steer", "kernels", "pyproject.toml", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

DRAW = "import sys; from steer.cli.entry import run\ntry: run()\nfinally: print(*sys.modules)"
NEEDLESS = {"datasets", "gradio", "matplotlib", "pandas", "pyarrow", "ray", "sklearn"}
"""Slow to import, installed with the extras or by other libraries, and no part of a picture."""

pytestmark = pytest.mark.slow


def call(*words: str | Path, cwd: Path) -> str:
    """The output of a program that must succeed; it sees neither the checkout nor a network."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    offline = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=env | offline, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=skip)
        else:
            shutil.copy(source, copy / name)
    call(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", out, copy, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_is_in_the_wheel(names: set[str]) -> None:
    """Packages are listed by hand in pyproject.toml: none may be forgotten."""
    modules = {
        path.relative_to(ROOT).as_posix().replace("kernels/", "steer_kernels/", 1)
        if path.is_relative_to(ROOT / "kernels")
        else path.relative_to(ROOT).as_posix()
        for folder in ("steer", "kernels")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert modules <= names


def test_data_is_in_the_wheel(names: set[str]) -> None:
    data = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.j2", "*.safetensors", "*.json")
        for path in (ROOT / "steer").rglob(pattern)
    }
    assert "steer/py.typed" in names and data <= names
    assert any(name.endswith(".j2") for name in data)
    assert any(name.startswith("steer/shapes/weights/") for name in data)


def test_nothing_else_is(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    info = next(top for top in tops if top.endswith(".dist-info"))
    assert tops == {"steer", "steer_kernels", info}
    assert not [name for name in names if "test" in name or "__pycache__" in name]


def test_entry_points_and_extras(wheel: Path, names: set[str]) -> None:
    info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
    with zipfile.ZipFile(wheel) as archive:
        points = archive.read(f"{info}/entry_points.txt").decode()
        facts = archive.read(f"{info}/METADATA").decode()
    assert "steer = steer.cli.entry:run" in points
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert all(f"Provides-Extra: {extra}" in facts for extra in project["optional-dependencies"])


@pytest.mark.exhaustive
def test_the_installed_command_draws_offline(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that has the same packages, but for steer: that comes from the wheel."""
    home, out = tmp_path / "env", tmp_path / "out"
    call(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    # A folder named in a .pth file joins the path, its own .pth files (editable installs) do not.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(*PIP, "install", "--no-deps", "--no-compile", "--target", site, wheel, cwd=tmp_path)
    where = call(python, "-c", "import steer, steer_kernels; print(steer.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(home)
    words = ("sample", "a red circle", "--pipeline", "shapes", "--reward", "shapes")
    more = ("--compute", "2", "--steps", "6", "--device", "cpu", "--out", out)
    *_, imported = call(python, "-c", DRAW, *words, *more, cwd=tmp_path).splitlines()
    assert not NEEDLESS & set(imported.split())
    assert not {"steer.tune", "steer.jobs.compare", "steer.jobs.studio"} & set(imported.split())
    run = json.loads((out / "run.json").read_text("utf-8"))
    assert run["status"] == "finished" and (out / "report.html").stat().st_size > 10_000
    assert all((out / name).is_file() for name in run["prompts"][0]["images"])
