"""The fixed texts of published models, as their authors wrote them (all under the MIT licence)."""

from __future__ import annotations

from importlib.resources import files


def read(name: str) -> str:
    """The text of `<name>.txt`; `{prompt}` stands where the prompt goes."""
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
