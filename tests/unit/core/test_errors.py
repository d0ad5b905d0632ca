"""How other libraries' errors are told."""

from __future__ import annotations

import pytest

from steer.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("\n  no network.\nTry again."), "no network"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 400), "x" * 300),
    ],
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
