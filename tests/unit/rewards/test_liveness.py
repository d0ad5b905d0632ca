"""Weights that do nothing are told when a reward is loaded by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import steer
from steer.core.errors import CheckpointError
from steer.rewards import liveness, names
from steer.rewards.base import BaseReward
from steer.rewards.liveness import check_alive
from steer.shapes import weights_folder


class Fake(BaseReward):
    """Scores by what it is told to read, and counts its images."""

    name = "fake"

    def __init__(self, picture: float, prompt: float, needs_prompt: bool = True) -> None:
        self.picture, self.prompt, self.needs_prompt = picture, prompt, needs_prompt
        self.seen = 0

    def score(self, images, prompts):
        self.seen += len(images)
        words = images.new_tensor([float(len(prompt)) for prompt in prompts])
        return 1 + self.picture * images.mean((1, 2, 3)) + self.prompt * words


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(liveness, "_alive", set())
    monkeypatch.setattr(names, "_registered", {})


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (Fake(0, 0), "'a.pt' are dead or damaged, a black picture and a red circle both score 1"),
        (Fake(0, 1), "a black picture and a red circle both score 13"),
        (Fake(1, 0), "two prompts both give .* for one picture"),
        (Fake(0, 0, needs_prompt=False), "a black picture and a red circle both score 1"),
        (Fake(float("nan"), 0), "no finite score"),
    ],
)
def test_dead_weights(fake, message):
    with pytest.raises(CheckpointError, match=message):
        check_alive(fake, "'a.pt'")


def test_live_weights_are_looked_at_once_and_blind_ones_on_pictures_only():
    seeing, blind = Fake(1, 1), Fake(1, 0, needs_prompt=False)
    check_alive(seeing, "")
    check_alive(seeing, "")
    assert seeing.seen == 3
    blind.name = "blind"
    check_alive(blind, "")
    assert blind.seen == 2


def test_a_file_without_life_is_named(tmp_path):
    """The bundled scorer, its image projection zeroed as an untrained adapter would be."""
    folder = tmp_path / "dead"
    folder.mkdir()
    for file in (weights_folder() / "scorer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "open_clip_model.safetensors"
    state = load_file(weights)
    state["visual.proj"] = torch.zeros_like(state["visual.proj"])
    save_file(state, weights)
    with pytest.raises(CheckpointError, match=r"reward 'shapes'.*checkpoint='.*dead' are dead"):
        steer.reward("shapes", checkpoint=folder, device="cpu")
    assert steer.reward("shapes", device="cpu").name == "shapes"


def test_rewards_of_the_users_own_are_not_looked_at():
    calls = []

    def constant(images, prompts):
        calls.append(len(images))
        return images.new_zeros(len(images))

    steer.reward(constant)
    steer.register_reward("dead-but-mine")(constant)
    steer.reward("dead-but-mine")
    assert not calls
