"""`PerFrame` against loops over frames written out here; what takes videos; bad input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import Tensor

import steer
from steer.core.errors import NotFiniteError
from steer.rewards import PerFrame, resolve
from steer.rewards.frames import as_videos, count_images, takes_videos
from steer.rewards.function import FunctionReward


def contrast(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Not linear in the pixels, and dependent on the prompt."""
    return images.flatten(1).std(1) * torch.tensor([float(len(p)) for p in prompts])


def red(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


def blue(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 2].square().mean((1, 2))


def per_frame(function: Any, *arguments: Any, **options: Any) -> PerFrame:
    return PerFrame(steer.reward(function), *arguments, **options)


def videos(count: int = 3, frames: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(count, frames, 3, 4, 6, generator=torch.Generator().manual_seed(seed))


PROMPTS = ["a", "two words", "xyz"]


def looped(x: Tensor, aggregate: str, every: int = 1, reward: Any = contrast) -> list[float]:
    """One frame at a time, one number at a time."""
    scores = []
    for video, prompt in zip(x, PROMPTS, strict=True):
        own = [float(reward(frame[None], [prompt])) for frame in video[::every]]
        if aggregate == "last":
            own = [float(reward(video[-1:], [prompt]))]
        scores.append(min(own) if aggregate == "min" else sum(own) / len(own))
    return scores


@pytest.mark.parametrize("aggregate", ["mean", "min", "last"])
@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_equals_a_loop(aggregate: Any, every: int) -> None:
    if aggregate == "last" and every > 1:
        return
    x = videos()
    got = per_frame(contrast, aggregate, every=every)(x, PROMPTS)
    assert got.tolist() == pytest.approx(looped(x, aggregate, every), abs=1e-6)
    assert got.dtype == torch.float32


def test_only_the_frames_that_count_are_scored() -> None:
    seen: list[int] = []

    def count(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(len(images))
        return images.flatten(1).mean(1)

    x = videos(2, 7)
    for reward, frames in (
        (per_frame(count), 7),
        (per_frame(count, every=3), 3),
        (per_frame(count, "last"), 1),
    ):
        reward(x, "p")
        assert seen.pop() == 2 * frames == count_images(reward, x)
    assert count_images(per_frame(count), x[:, 0]) == 2


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_those_of_the_frames(every: int) -> None:
    reward = FunctionReward(contrast, differentiable=True)
    x = videos().requires_grad_()
    whole = PerFrame(reward, every=every)
    assert whole.differentiable
    (got,) = torch.autograd.grad(whole(x, PROMPTS).sum(), x)
    expected = torch.zeros_like(got)
    for row, prompt in enumerate(PROMPTS):
        for k in range(0, 5, every):
            frame = x.detach()[row, k : k + 1].requires_grad_()
            (slope,) = torch.autograd.grad(contrast(frame, [prompt]).sum(), frame)
            expected[row, k] = slope[0] / len(range(0, 5, every))
    torch.testing.assert_close(got, expected)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(5)), aggregate=st.sampled_from(["mean", "min"]))
def test_the_order_of_frames_does_not_matter(order: list[int], aggregate: Any) -> None:
    x, reward = videos(), per_frame(contrast, aggregate)
    torch.testing.assert_close(reward(x[:, order], PROMPTS), reward(x, PROMPTS))


def test_images_are_videos_of_one_frame() -> None:
    x = videos(3, 1)
    for aggregate in ("mean", "min", "last"):
        reward = per_frame(contrast, aggregate)
        expected = contrast(x[:, 0], PROMPTS)
        torch.testing.assert_close(reward(x, PROMPTS), expected)
        torch.testing.assert_close(reward(x[:, 0], PROMPTS), expected)


def test_what_pipelines_return_is_taken() -> None:
    """`output_type` "np", "pt" and "pil" of a video pipeline."""
    x = (videos(2, 3) * 255).round() / 255
    reward, prompts = per_frame(contrast), ["a", "bb"]
    expected = reward(x, prompts)
    array = x.permute(0, 1, 3, 4, 2).numpy()
    torch.testing.assert_close(reward(array, prompts), expected)
    pictures = [[Image.fromarray((f * 255).round().astype(np.uint8)) for f in v] for v in array]
    torch.testing.assert_close(reward(pictures, prompts), expected)
    torch.testing.assert_close(reward((x * 255).round().byte(), prompts), expected)
    assert as_videos(pictures[0]).shape == (3, 1, 3, 4, 6)  # a flat list is of images


def test_sums_are_summed_frame_by_frame_and_their_parts_reported() -> None:
    x = videos()
    total = 0.7 * steer.reward(red) - 2.0 * steer.reward(blue)
    reward = PerFrame(total, "min")
    parts = reward.parts(x, PROMPTS)
    both = looped(x, "min", reward=lambda i, p: 0.7 * red(i, p) - 2.0 * blue(i, p))
    assert reward(x, PROMPTS).tolist() == pytest.approx(both, abs=1e-6)
    assert parts["red"].tolist() == pytest.approx(looped(x, "min", reward=red), abs=1e-6)
    assert set(parts) == {"red", "blue", total.name}


def test_rewards_per_frame_can_be_summed() -> None:
    x = videos()
    reward = 0.5 * per_frame(red) + 2.0 * per_frame(blue, "min")
    one, two = looped(x, "mean", reward=red), looped(x, "min", reward=blue)
    expected = [0.5 * a + 2 * b for a, b in zip(one, two, strict=True)]
    assert reward(x, PROMPTS).tolist() == pytest.approx(expected, abs=1e-6)
    assert takes_videos(reward)
    assert count_images(reward, x) == 15


def test_rewards_of_a_sum_share_the_frames() -> None:
    """So that two rewards of one encoder compute its features once."""
    seen: list[Tensor] = []

    def look(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(images)
        return images.flatten(1).mean(1)

    x = videos()
    (per_frame(look, every=2) + per_frame(look, "min", every=2))(x, PROMPTS)
    assert seen[0].data_ptr() == seen[1].data_ptr()
    (per_frame(look) + per_frame(look, every=2))(x, PROMPTS)
    assert [len(images) for images in seen[2:]] == [15, 9]


def test_ranks_compare_videos() -> None:
    x = videos()
    ranked = steer.reward({red: 1.0, blue: 0.5}, combine="rank")
    reward = PerFrame(ranked)
    assert reward.relative
    means = {
        k: torch.tensor(looped(x, "mean", reward=f)) for k, f in (("red", red), ("blue", blue))
    }
    same = ["p"] * 3
    expected = ranked.combine(means, same)
    torch.testing.assert_close(reward(x, same), expected)
    assert len(set(expected.tolist())) > 1


def test_names_say_how() -> None:
    assert per_frame(red).name == "red per frame (mean)"
    assert per_frame(red, "min", every=4).name == "red per frame (min, every 4)"
    assert repr(per_frame(red, every=2)) == "PerFrame('red', aggregate='mean', every=2)"
    inner = FunctionReward(red, range=(0.0, 1.0), needs_prompt=False)
    outer = PerFrame(inner)
    assert (outer.range, outer.needs_prompt) == ((0.0, 1.0), False)
    assert steer.reward(outer) is outer


def test_video_pipelines_get_the_mean_and_others_nothing() -> None:
    wrapped = resolve(red, videos=True)
    assert isinstance(wrapped, PerFrame) and wrapped.aggregate == "mean"
    declared = per_frame(red, "last")
    assert resolve(declared, videos=True) is declared
    mixed = per_frame(red) + per_frame(blue, "min")
    assert resolve(mixed, videos=True) is mixed
    assert not takes_videos(resolve(red))


def test_a_reward_for_whole_videos_gets_them_whole() -> None:
    def motion(films: Tensor, prompts: Sequence[str]) -> Tensor:
        return films.diff(dim=1).abs().flatten(1).mean(1)

    motion.videos = True
    reward = resolve(motion, videos=True)
    x = videos()
    expected = (x[:, 1:] - x[:, :-1]).abs().mean((1, 2, 3, 4))
    torch.testing.assert_close(reward(x, PROMPTS), expected)
    assert count_images(reward, x) == 3
    both = 2.0 * reward + per_frame(red)
    torch.testing.assert_close(both(x, PROMPTS), 2 * expected + per_frame(red)(x, PROMPTS))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: per_frame(red, "median"),
            "aggregate='median': one of 'mean', 'min', 'last'",
        ),
        (lambda: per_frame(red, every=0), "every=0: must be a whole number"),
        (lambda: per_frame(red, every=True), "every=True"),
        (lambda: per_frame(red, "last", every=2), "every=2 with aggregate='last'"),
        (lambda: PerFrame("hpsv2"), "'hpsv2' is not a reward: wrap it with steer.reward"),  # type: ignore[arg-type]
        (lambda: PerFrame(red), "is not a reward: wrap it with steer.reward"),  # type: ignore[arg-type]
        (lambda: PerFrame(per_frame(red)), "scores videos already"),
        (lambda: per_frame(red)(videos() * 255, PROMPTS), "pass images / 255"),
        (
            lambda: per_frame(red)(videos(), ["a", "b"]),
            r"len\(prompts\)=2 for 3 images",
        ),
        (lambda: per_frame(red)(videos().transpose(1, 2), PROMPTS), "expected"),
        (
            lambda: per_frame(red)([[Image.new("RGB", (4, 4))] * 2, []], "p"),
            r"\[0, 2\] frames",
        ),
        (
            lambda: per_frame(red)([[Image.new("RGB", (4, 4)), Image.new("RGB", (8, 4))]], "p"),
            "different sizes",
        ),
        (lambda: steer.reward(red)(videos(), PROMPTS), r"with steer.rewards.PerFrame\(reward\)"),
        (
            lambda: (per_frame(red) + steer.reward(blue))(videos(), PROMPTS),
            r"with steer.rewards.PerFrame\(reward\)",
        ),
    ],
)
def test_bad_input(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_nan_names_the_video() -> None:
    x = videos()
    x[1, 3, 0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError) as caught:
        per_frame(red)(x, PROMPTS)
    assert caught.value.index == 1
