"""`judge="auto"`: a held-out reward that is no kin of the one that is optimised."""

from __future__ import annotations

import itertools
import logging

import pytest

import steer
from steer.jobs.calibrate_job import CalibrateJob
from steer.jobs.compare.config import Comparison
from steer.jobs.sample_job import SampleJob
from steer.rewards.combine import presets
from steer.rewards.families import families_in, family_of, kinship
from steer.rewards.judges import BUNDLED, PUBLISHED, auto_judge
from steer.rewards.names import BUILT_IN, PRESETS
from steer.rewards.text import names_in


@pytest.mark.parametrize(
    ("reward", "judge"),
    [
        ("shapes", "shapes-vqa"),
        ("shapes-vqa", "shapes"),
        ("hpsv2", "cyclereward"),
        ("pickscore", "cyclereward"),
        ("cyclereward", "hpsv2.1"),
        ("imagereward", "clip:ViT-B-32:laion2b_s34b_b79k"),
        ("rank(hpsv2,imagereward=0.5)", "clip:ViT-B-32:laion2b_s34b_b79k"),
        ("reno", "aesthetic-v2.5"),
        ("vqa:Qwen/Qwen3-VL-2B-Instruct", "cyclereward"),
    ],
)
def test_the_first_judge_that_is_no_kin(reward, judge):
    assert auto_judge(reward) == judge


@pytest.mark.parametrize("reward", sorted(n for n in BUILT_IN if not n.endswith(":*")))
def test_it_is_never_kin(reward):
    family = family_of(auto_judge(reward))
    assert not any(kinship(own, family) for own in families_in(reward))


def test_the_tables_hold_names_with_families():
    assert all(family_of(name) for name in (*BUNDLED, *PUBLISHED))


def test_it_says_what_it_takes_and_whether_that_is_downloaded(caplog):
    with caplog.at_level(logging.WARNING, "steer"):
        auto_judge("hpsv2")
        auto_judge("shapes")
    assert "'cyclereward' (blip/cycle) beside reward 'hpsv2' (clip-h/human)" in caplog.text
    assert "downloaded if not yet here" in caplog.messages[0]
    assert "in the package" in caplog.messages[1]


def test_unknown_families_are_refused():
    with pytest.raises(
        ValueError, match=r"the family of reward 'redness' is unknown.*name a judge"
    ):
        auto_judge("redness")


def test_a_reward_of_every_family_is_refused():
    with pytest.raises(ValueError, match=r"every judge of its table .* name a judge yourself"):
        auto_judge("hpsv2=1,cyclereward=1,clip:ViT-B-32:openai=1,aesthetic-v2.5=1")


def test_in_a_call():
    pipe = steer.shapes.pipeline(device="cpu")
    guided = steer.guided(pipe, "shapes", method=steer.BestOfN(2), judge="auto")
    out = guided("a red circle", num_inference_steps=2)
    assert list(out.report.judges) == ["shapes-vqa"]
    assert 0 <= out.report.judges["shapes-vqa"][0] <= 1


def test_in_jobs_it_becomes_the_name():
    prompts = ("a red circle",) * 4
    assert SampleJob(prompts, judges=("auto", "shapes-clip")).judges == (
        "shapes-vqa",
        "shapes-clip",
    )
    assert CalibrateJob(prompts, judge="auto").judge == "shapes-vqa"
    arms = [{"name": "plain"}, {"name": "best", "compute": 2}]
    asked = Comparison.model_validate(
        {"arms": arms, "baseline": "plain", "prompts": "shapes", "judges": "auto"}
    )
    assert asked.judges == ("shapes-vqa",)
    with pytest.raises(ValueError, match="name each once"):
        SampleJob(prompts, judges=("auto", "shapes-vqa"))


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if name.startswith("trio")))
def test_no_two_members_of_a_trio_are_kin(name):
    families = [family_of(member) for member in names_in(_text(name))]
    assert len(families) == 3 and all(families)
    assert not any(kinship(a, b) for a, b in itertools.combinations(families, 2))
    assert families_in(name) == set(families)


def _text(name: str) -> str:
    return getattr(presets, name.replace(":", "_"))()
