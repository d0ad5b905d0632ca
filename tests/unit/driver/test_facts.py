"""Facts about pipelines, on the small ones of every kind."""

from __future__ import annotations

import pytest
from families import shared

from steer.driver.facts import makes_videos


@pytest.mark.parametrize(("family", "videos"), [("sd", False), ("sdxl", False), ("wan", True)])
def test_which_pipelines_make_videos(family: str, videos: bool) -> None:
    assert makes_videos(shared(family)) is videos
