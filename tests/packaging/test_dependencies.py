"""Every imported package is declared where it is needed; every declared one is used, explained."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from steer.core.checks import require_extra


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OWN = {"steer", "steer_kernels"}
BRINGS = {"torch": ("triton",)}
"""Import names that come with a declared package on the platforms that have them."""

UNSEEN = {"onnxruntime"}
"""What another package of the same extra imports: rapidocr runs its models with it."""

EXTRA_OF = {
    "steer/jobs/serving": "serve",
    "steer/jobs/spread": "ray",
    "steer/jobs/studio": "app",
    "steer/rewards/ocr": "ocr",
    "steer/rewards/remote": "remote",
    "steer/tune": "train",
}
"""Folders that need an extra."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra: str | None = None) -> set[str]:
    """Names of the distributions that the project, or one of its extras, asks for."""
    found = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {normal(re.split(r"[<>=!~\[; ]", text, maxsplit=1)[0]) for text in found}


def imports(folder: Path) -> Iterator[tuple[str, Path]]:
    """Top-level names of all imports below a folder, lazy ones too, with their files."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], file) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield str(node.module).split(".")[0], file


@cache
def installed() -> Mapping[str, list[str]]:
    """Distributions by import name; slow to find."""
    return metadata.packages_distributions()


def distributions(module: str) -> set[str]:
    """The distributions that may bring a module."""
    found = installed().get(module, [module])
    brought = {dist for dist, names in BRINGS.items() if module in names}
    return {normal(name) for name in found} | brought


def foreign(folder: Path) -> list[tuple[str, Path]]:
    known = sys.stdlib_module_names | OWN
    return [(name, file) for name, file in imports(folder) if name not in known]


@pytest.mark.parametrize("folder", ["steer", "kernels"])
def test_what_is_imported_is_declared(folder: str) -> None:
    lost = []
    for module, file in foreign(ROOT / folder):
        where = file.relative_to(ROOT).as_posix()
        extras = [extra for start, extra in EXTRA_OF.items() if where.startswith(f"{start}/")]
        allowed = declared().union(*map(declared, extras))
        if not distributions(module) & allowed:
            lost.append(f"{where}: {module}")
    assert not lost


@pytest.mark.parametrize("extra", [None, "train", "ocr", "remote", "serve", "app"])
def test_what_is_declared_is_imported(extra: str | None) -> None:
    used = {dist for module, _ in foreign(ROOT / "steer") for dist in distributions(module)}
    assert declared(extra) - UNSEEN <= used


def test_every_dependency_is_explained() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    extras = PROJECT["optional-dependencies"]
    names = declared().union(*map(declared, extras)) - {"steer-diffusion"}
    words = {normal(word) for word in re.findall(r"[\w-]+", page)}
    assert names <= words
    assert all(f"`{extra}`" in page for extra in extras)


def test_a_missing_extra_says_how_to_get_it() -> None:
    require_extra("train", "json")
    with pytest.raises(ImportError, match=r"pip install 'steer-diffusion\[train\]'"):
        require_extra("train", "json", "no_such_module")


def test_training_without_its_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from typer.testing import CliRunner

    from steer.cli.app import app

    real = importlib.util.find_spec
    for name in [name for name in sys.modules if name.split(".")[:2] == ["steer", "tune"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "pyarrow" else real(name)
    )
    result = CliRunner().invoke(app, ["tune", "run", "examples/tune_shapes.yaml"])
    assert result.exit_code == 2
    assert result.stderr == (
        "steer: pyarrow not installed: run pip install 'steer-diffusion[train]'\n"
    )
