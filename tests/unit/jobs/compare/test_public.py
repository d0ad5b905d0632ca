"""`steer.jobs.compare` from Python: its names are the functions, also once modules are imported."""

from __future__ import annotations

import importlib
import sys
from types import FunctionType

import pytest

import steer.jobs
from steer.jobs import compare


def test_names_are_functions_and_not_modules() -> None:
    from steer.jobs.compare import read, run

    for name in compare.__all__:
        assert getattr(compare, name).__module__ in (
            "steer.jobs.compare.config",
            "steer.jobs.compare.job",
        )
    assert isinstance(read, FunctionType) and isinstance(run, FunctionType)


def test_when_modules_are_imported_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh program: `from steer.compare import run` once gave a module."""
    modules = [f"steer.jobs.compare.{name}" for name in ("job", "page")]
    for name in modules:
        importlib.import_module(name)
    monkeypatch.setattr(steer.jobs, "compare", compare)  # put back afterwards, as all else
    for name in [name for name in sys.modules if f"{name}.".startswith("steer.jobs.compare.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in modules:
        importlib.import_module(name)
    from steer.jobs.compare import read, run

    assert sys.modules["steer.jobs.compare"] is not compare
    assert callable(read) and callable(run), (read, run)


def test_no_module_hides_a_public_name() -> None:
    for name in compare.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"steer.jobs.compare.{name}")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'reed'"):
        _ = compare.reed
