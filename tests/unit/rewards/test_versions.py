"""Versions of rewards: the same weights have the same one, other weights another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import steer
from steer.core.weights.reading import fingerprint
from steer.rewards.parts import identity


def test_fingerprints_tell_weights_apart_not_precisions() -> None:
    torch.manual_seed(0)
    half = nn.Linear(50, 40).half()
    full = nn.Linear(50, 40)
    full.load_state_dict(half.state_dict())
    assert fingerprint(half) == fingerprint(full)
    with torch.no_grad():
        full.bias += 1e-3
    assert fingerprint(half) != fingerprint(full)
    assert fingerprint(half) != fingerprint(nn.Linear(40, 50))
    assert len(fingerprint(half)) == 12


def test_rewards_of_other_weights_have_other_versions() -> None:
    scorer, contrastive = steer.reward("shapes"), steer.reward("shapes-clip")
    versions = [identity(r)[1] for r in (scorer, contrastive)]
    assert all(versions) and versions[0] != versions[1]
    both = steer.reward({"shapes": 0.5, "shapes-clip": 0.5})
    assert identity(both)[1] == "+".join(versions)
    assert identity(steer.reward(lambda images, prompts: images.mean((1, 2, 3))))[1] == ""


def test_a_threshold_of_other_weights_is_refused_naming_both() -> None:
    scorer, contrastive = steer.reward("shapes"), steer.reward("shapes-clip")
    contrastive.name = "shapes"
    try:
        tau = steer.Threshold.fit([0.1, 0.2, 0.3], reward=contrastive)
        with pytest.raises(ValueError, match=identity(contrastive)[1]) as error:
            tau.check(scorer)
    finally:
        contrastive.name = "shapes-clip"
    assert identity(scorer)[1] in str(error.value)
    steer.Threshold.fit([0.1, 0.2, 0.3], reward=scorer).check(scorer)
