"""`steer.jobs.compare` from Python: its names are the functions, also once modules are imported."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import FunctionType

import pytest

from steer.jobs import compare


def test_names_are_functions_and_not_modules() -> None:
    from steer.jobs.compare import read, run

    for name in compare.__all__:
        assert getattr(compare, name).__module__ in (
            "steer.jobs.compare.config",
            "steer.jobs.compare.job",
        )
    assert isinstance(read, FunctionType) and isinstance(run, FunctionType)


def test_in_a_fresh_program() -> None:
    """Whatever was imported before: `from steer.compare import run` once gave a module."""
    code = (
        "import steer.jobs.compare.job, steer.jobs.compare.page\n"
        "from steer.jobs.compare import read, run\n"
        "assert callable(read) and callable(run), (read, run)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_hides_a_public_name() -> None:
    for name in compare.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"steer.jobs.compare.{name}")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'reed'"):
        _ = compare.reed
