"""The lock is what pyproject.toml asks for: every requirement pinned within its bounds, hashed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements" / "dev.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [
    Requirement(entry.split(" --hash")[0])
    for entry in LOCK.replace("\\\n", " ").splitlines()
    if re.match(r"\w", entry)
]


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    for requirement in _wanted("dev"):
        pins = [pin for pin in PINS if canonicalize_name(pin.name) == _name(requirement)]
        assert pins, requirement.name
        for pin in pins:  # several, where other versions of Python take others
            (version,) = (clause.version for clause in pin.specifier)
            assert version in requirement.specifier, f"{pin}: run `make lock`"


def test_every_pin_has_hashes_and_no_line_names_where_it_came_from() -> None:
    entries = [line for line in LOCK.replace("\\\n", " ").splitlines() if re.match(r"\w", line)]
    assert entries and all("--hash=sha256:" in entry for entry in entries)
    assert all(
        re.fullmatch(r"\w[^\s=]*==[^\s;]+( ;.*)?", e.split("  ")[0].strip()) for e in entries
    )
    assert "://" not in LOCK and "-url" not in LOCK and "find-links" not in LOCK


def test_the_lock_has_what_builds_steer() -> None:
    """It is installed with `--no-build-isolation`."""
    assert "setuptools" in {pin.name for pin in PINS}


def _wanted(extra: str) -> list[Requirement]:
    """What steer needs with an extra; an extra may name others of steer's own."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if _name(requirement) == PROJECT["name"]:
            found += [more for other in requirement.extras for more in _wanted(other)]
        else:
            found.append(requirement)
    return found


def _name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)
