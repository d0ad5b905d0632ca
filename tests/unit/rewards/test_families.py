"""Families of rewards, and the warning of a judge that is kin to the reward."""

from __future__ import annotations

import warnings

import pytest

import steer
from steer.rewards import names
from steer.rewards.families import FAMILIES, families_in, family_of, kinship, warn_of_kin
from steer.rewards.function import FunctionReward


@pytest.mark.parametrize("name", sorted(name for name in names.BUILT_IN if not name.endswith(":*")))
def test_every_built_in_name_has_a_family(name):
    assert family_of(name)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("clip:ViT-H-14:laion2b_s32b_b79k", "clip-h/captions"),
        ("clip:ViT-B-32-quickgelu:openai", "clip-b/captions"),
        ("clip:ViT-SO400M-14-SigLIP-384:webli", "siglip/captions"),
        ("clip:convnext_base:laion400m", "clip-convnext_base/captions"),
        ("vqa:Qwen/Qwen2.5-VL-3B-Instruct", "vlm"),
        ("my-own", ""),
    ],
)
def test_families_of_names_with_arguments(name, family):
    assert family_of(name) == family


def test_kinship():
    assert kinship("clip-h/human", "blip/human") == ["training data human"]
    assert kinship("clip-h/human", "clip-h/captions") == ["backbone clip-h"]
    assert kinship("jpeg", "jpeg") == ["backbone jpeg"]
    assert kinship("clip-h/human", "blip/cycle") == kinship("vlm", "clip-h/human") == []


def test_loaded_rewards_know_theirs():
    made = steer.reward("shapes", device="cpu")
    assert families_in(made) == {"shapes-vit/shapes-votes"}
    assert families_in(steer.reward("compressibility")) == {"jpeg"}
    augmented = steer.reward({"augmented:compressibility": 1.0})
    assert families_in(augmented) == {"jpeg"}


def test_texts_are_looked_up_by_their_names():
    assert families_in("rank(hpsv2,augmented:imagereward=0.5)") == {"clip-h/human", "blip/human"}
    assert families_in("oracle") == set()
    with pytest.warns(UserWarning, match="judge 'pickscore' shares its training data human with"):
        warn_of_kin("imagereward=0.5,clip:ViT-B-32:openai=0.5", "pickscore")


def plain(name: str, family: str) -> FunctionReward:
    def score(images, prompts):
        return images.mean((1, 2, 3))

    score.family = family
    return FunctionReward(score, name=name)


def test_a_judge_that_is_kin_is_warned_of():
    hps, pick = plain("hps", FAMILIES["hpsv2"]), plain("pick", FAMILIES["pickscore"])
    message = (
        "judge 'pick' shares its backbone clip-h and its training data human with the reward "
        "'hps=1,compressibility=0' that is optimised"
    )
    jpeg = steer.reward("compressibility")
    with pytest.warns(UserWarning, match=message):
        warn_of_kin(1.0 * hps + 0.0 * jpeg, pick)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_kin(1.0 * hps + 0.0 * jpeg, jpeg)  # a part of weight zero is only reported
        warn_of_kin(hps, plain("cycle", FAMILIES["cyclereward"]))
        warn_of_kin(plain("mine", ""), plain("yours", ""))


def test_guided_warns_of_it():
    pipe = steer.shapes.pipeline(device="cpu")
    with pytest.warns(UserWarning, match="judge 'incompressibility' shares its backbone jpeg"):
        steer.guided(pipe, "compressibility", judge=["shapes", "incompressibility"])
