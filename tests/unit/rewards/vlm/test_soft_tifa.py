"""Soft-TIFA against plain forward passes: one question at a time, the whole softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import vlm_models

import steer
from steer.rewards.families import family_of
from steer.rewards.function import FunctionReward
from steer.rewards.parts import check_prompts
from steer.rewards.vlm.soft_tifa import SoftTifaReward, soft_tifa


QUESTIONS = {
    "pond": [["Does a blue circle show", "yes"], ["a red square left of", ["yes", "no"]]],
    "hill": [["answer a circle", "no"]],
}
RIGHT = {
    "pond": [
        ["Yes", "yes", " Yes", " yes"],
        [s + w for w in ("Yes", "yes", "No", "no") for s in ("", " ")],
    ],
    "hill": [["No", "no", " No", " no"]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vlm_models.save("qwen3_vl", tmp_path_factory.mktemp("vlm") / "qwen3_vl")


@pytest.fixture(scope="module")
def reward(folder) -> SoftTifaReward:
    return soft_tifa(str(folder), questions=QUESTIONS, device="cpu", batch=2)


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def chances(reward: SoftTifaReward, image: torch.Tensor, prompt: str) -> torch.Tensor:
    """Probability of a right answer to each question, from one plain forward pass each."""
    found = []
    for (text, _), words in zip(QUESTIONS[prompt], RIGHT[prompt], strict=True):
        inputs = reward.answerer.inputs(image[None], [f"{text} Answer in one word."])
        with torch.no_grad():
            logits = reward.answerer.model(**inputs).logits[0, -1].double()
        found.append(logits.softmax(-1)[[vlm_models.token(word) for word in words]].sum())
    return torch.stack(found)


def test_geometric_and_arithmetic_means(reward, folder):
    pictures, prompts = images(3), ["pond", "hill", "pond"]
    expected = [chances(reward, x, p) for x, p in zip(pictures, prompts, strict=True)]
    geometric = torch.stack([row.log().mean().exp() for row in expected])
    assert torch.allclose(reward(pictures, prompts).double(), geometric, rtol=1e-4)
    other = soft_tifa(str(folder), questions=QUESTIONS, device="cpu", mean="arithmetic")
    mean = torch.stack([row.mean() for row in expected])
    assert torch.allclose(other(pictures, prompts).double(), mean, rtol=1e-4)
    assert other.name == f"{reward.name}-arithmetic"
    assert mean[0] != geometric[0]


def test_it_has_a_gradient(reward):
    pictures = images(2).requires_grad_()
    reward(pictures, ["pond", "hill"]).sum().backward()
    assert reward.differentiable and pictures.grad is not None
    assert (pictures.grad.flatten(1).norm(dim=1) > 0).all()


def test_prompts_without_questions_are_refused_before_anything_is_sampled(reward):
    mixed: Any = 0.5 * reward + FunctionReward(lambda images, prompts: images.mean((1, 2, 3)))
    with pytest.raises(ValueError, match=r"prompt 'a day of rest' has no questions"):
        check_prompts(mixed, ["pond", "a day of rest"])
    check_prompts(mixed, ["hill", "a red circle"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "median"}, "mean='median': one of 'geometric', 'arithmetic'"),
        ({"questions": {"p": [["Which tree?", "oak"]]}}, "answer 'oak' is not in the model's"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        soft_tifa(str(folder), device="cpu", **options)


def test_by_name(folder, reward):
    found = steer.reward(
        "soft-tifa:own/model", checkpoint=folder, questions=QUESTIONS, device="cpu"
    )
    assert found.name == "soft-tifa:own/model" and family_of(found.name) == "vlm"
    assert torch.equal(found(images(1), "hill"), reward(images(1), "hill"))
