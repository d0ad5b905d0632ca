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
        (
            ValueError("Weights only load failed. Set `weights_only` to `False`.\nIt is odd."),
            "It is odd",
        ),
        (ValueError("It has code. Set the option `trust_remote_code=True`."), "It has code"),
    ],
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
