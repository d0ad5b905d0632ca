"""Rewards that see all candidates of a prompt: whole groups, of one prompt, through pipelines."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from families import arguments, redness, seeded, shared
from torch import Tensor

import steer
from steer.core.errors import RewardError
from steer.methods import SMC, BestOfN, Gate, Prune
from steer.pipeline.guided import guided
from steer.rewards import Augmented, Diversity, Groupwise, PerFrame
from steer.rewards.base import BaseReward
from steer.rewards.parts import Group, is_relative


PROMPTS = ["a red circle", "two"]


class Judge:
    """Ranks the candidates by how red they are, and notes whom it was shown."""

    groupwise = True

    def __init__(self) -> None:
        self.calls: list[tuple[set[str], int]] = []

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.calls.append((set(prompts), len(images)))
        return images[:, 0].mean((1, 2)).argsort().argsort().float()


class Corner(Groupwise):
    """The distance of an image's first pixel from the mean of all of them."""

    name = "corner"

    def look(self, images: Tensor, prompts: Any) -> Tensor:
        return images[:, :, 0, 0]

    def compare(self, looks: Tensor, prompt: str) -> Tensor:
        return (looks - looks.mean(0)).norm(dim=1)


def run(method: Any, reward: Any, width: int | None = None, **given: Any) -> Any:
    given = {"prompt": PROMPTS, "generator": [seeded(0), seeded(1)], **given}
    return guided(shared("sd"), reward, method=method, lane_width=width)(**arguments("sd", **given))


def finals(report: Any, prompt: int) -> dict[int, float]:
    rows = [row for row in report.trace.of("score", prompt) if not row["preview"]]
    pairs = [pair for row in rows for pair in zip(row["particle"], row["reward"], strict=True)]
    return dict(pairs)


@pytest.mark.parametrize("width", [1, 5])
def test_best_of_n_shows_a_judge_whole_groups_of_one_prompt(width: int) -> None:
    judge = Judge()
    out = run(BestOfN(5), judge, width)
    assert all(len(texts) == 1 for texts, _ in judge.calls)
    assert {(texts.copy().pop(), size) for texts, size in judge.calls} >= {(p, 5) for p in PROMPTS}
    for prompt in (0, 1):
        assert sorted(finals(out.report, prompt).values()) == [0, 1, 2, 3, 4]
    assert out.rewards == [4.0, 4.0]


def test_equal_prompts_are_groups_of_their_own() -> None:
    judge = Judge()
    run(BestOfN(3), judge, prompt=["two", "two"])
    assert max(size for _, size in judge.calls) == 3


def test_a_groupwise_choice_does_not_hang_on_lanes_or_company() -> None:
    outs = [run(BestOfN(4), Corner(), width) for width in (1, 4)]
    assert outs[0].report.chosen == outs[1].report.chosen
    for prompt in (0, 1):
        alone = run(BestOfN(4), Corner(), prompt=PROMPTS[prompt], generator=[seeded(prompt)])
        assert alone.report.chosen[0][1] == outs[0].report.chosen[prompt][1]
        assert alone.rewards[0] == pytest.approx(outs[0].rewards[prompt], abs=1e-4)


@pytest.mark.parametrize("method", [Prune(start=4, keep=(2,), at=(0.5,)), SMC(4)])
def test_previews_of_a_step_are_whole_groups(method: Any) -> None:
    judge = Judge()
    out = run(method, judge, 1)
    assert all(len(texts) == 1 for texts, _ in judge.calls)
    steps = {row["step"] for row in out.report.trace.of("score", 0) if row["preview"]}
    assert steps
    whole = Counter(texts.copy().pop() for texts, size in judge.calls if size == 4)
    assert all(whole[prompt] >= len(steps) for prompt in PROMPTS)


def test_a_groupwise_judge_and_a_groupwise_part() -> None:
    reward = steer.reward({redness: 1.0, Corner(): 0.5})
    assert is_relative(reward) and not reward.differentiable
    out = guided(shared("sd"), reward, method=BestOfN(3), judge=Judge())(**arguments("sd"))
    (row,) = [r for r in out.report.trace.of("score", 0) if not r["preview"]]
    assert list(row["parts"]) == ["redness"]  # what `look` returns is no score
    assert out.rewards[0] == max(row["reward"])
    images = torch.rand(3, 3, 8, 8, generator=seeded(0))
    expected = redness(images, ["x"] * 3) + 0.5 * Corner()(images, "x")
    assert torch.allclose(reward(images, "x"), expected)
    assert torch.allclose(Corner()(images[:1], "x"), torch.zeros(1))


def test_a_ranking_function_registered_by_name() -> None:
    @steer.register_reward("test-ranking", groupwise=True)
    def ranking(images: Tensor, prompts: list[str]) -> list[float]:
        return [float(len(images))] * len(images)

    reward = steer.reward("test-ranking")
    found = reward(torch.rand(4, 3, 8, 8), ["a", "b", "a", "a"])
    assert found.tolist() == [3.0, 1.0, 3.0, 3.0]


def test_groups_are_kept_apart_and_in_their_rows() -> None:
    looks = torch.tensor([[0.0], [10.0], [2.0], [14.0]])
    groups = [Group("x", 0), Group("x", 1), Group("x", 0), Group("x", 1)]
    assert Corner().combine({"corner": looks}, groups).tolist() == [1.0, 2.0, 1.0, 2.0]


def test_diversity_is_the_mean_cosine_distance_to_the_others() -> None:
    reward = steer.reward("diversity:shapes-clip")
    assert isinstance(reward, Diversity) and reward.name == "diversity:shapes-clip"
    angles = torch.tensor([0.0, 0.0, torch.pi / 2])
    looks = torch.stack([angles.cos(), angles.sin()], 1)
    assert torch.allclose(reward.compare(looks, ""), torch.tensor([0.5, 0.5, 1.0]).double())
    images = torch.rand(2, 3, 32, 32, generator=seeded(0))
    alike = reward(images[[0, 0, 1]], "a red circle")
    assert alike[2] > alike[0] > 0 and alike[0] == pytest.approx(alike[1].item(), abs=1e-6)
    assert reward(images[:1], "a red circle").tolist() == [0.0]
    assert reward(images[:, None], "a video").shape == (2,)


def test_what_a_groupwise_reward_is_not_asked() -> None:
    with pytest.raises(ValueError, match="scores all candidates of a prompt together"):
        run(Gate(BestOfN(2), threshold=0.5), Corner())
    with pytest.raises(ValueError, match="compares the images of a prompt"):
        PerFrame(Corner())
    with pytest.raises(ValueError, match="compares the images of a prompt"):
        Augmented(steer.reward({redness: 1.0, Corner(): 0.5}))
    with pytest.raises(ValueError, match="has no image features"):
        steer.reward("diversity:compressibility")
    judge: Any = steer.reward(Judge())
    with pytest.raises(ValueError, match="images of several sizes"):
        judge([torch.rand(3, 8, 8), torch.rand(3, 16, 16)], "x")


def test_a_groupwise_reward_that_would_split_groups_is_refused() -> None:
    class Split(BaseReward):
        name = "split"
        groupwise = True

        def score(self, images: Tensor, prompts: Any) -> Tensor:
            return images.mean((1, 2, 3))

    with pytest.raises(ValueError, match="groupwise and has batch=32"):
        steer.reward(Split())
    with pytest.raises(ValueError, match=r"wrap it with steer\.reward"):
        _ = 0.5 * Split()


def test_a_comparison_of_the_wrong_size_is_named() -> None:
    class Short(Corner):
        name = "short"

        def compare(self, looks: Tensor, prompt: str) -> Tensor:
            return looks[:1, 0]

    with pytest.raises(RewardError, match=r"'short' returned \(1,\) for 3 images"):
        Short()(torch.rand(3, 3, 8, 8), "x")
