"""Bars of the commands: on a terminal only, and only where they are wanted."""

from __future__ import annotations

import io

import pytest

from steer.cli.terminal import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "shown", "seen"),
    [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)],
)
def test_a_bar_goes_to_a_terminal(
    stream: io.StringIO, shown: bool, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    done = []
    progress("scoring", (done.append(count) or count for count in (1, 2)), 3, shown)
    assert done == [1, 2]  # the work is done all the same
    assert ("scoring" in stream.getvalue()) == seen
