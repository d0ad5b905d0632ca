"""Facts about pipelines, on the small ones of every kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import shared

from steer.driver.facts import makes_videos
from steer.pipeline import arguments


@pytest.mark.parametrize(("family", "videos"), [("sd", False), ("sdxl", False), ("wan", True)])
def test_which_pipelines_make_videos(family: str, videos: bool) -> None:
    assert makes_videos(shared(family)) is videos


@pytest.mark.parametrize(
    ("pipe", "device"),
    [
        (SimpleNamespace(), None),
        (SimpleNamespace(_execution_device=torch.device("meta")), torch.device("meta")),
    ],
)
def test_rewards_go_to_the_pipelines_device_or_to_their_own_default(
    pipe: Any, device: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "resolve", lambda reward, where, videos: where)
    assert arguments.resolve_reward("hpsv2", pipe) == device
