"""`Augmented` against a loop over its changes; what it leaves alone; bad input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import steer
from steer.rewards import AtLeast, Augmented, PerFrame, resolve
from steer.rewards.combine import augmented
from steer.rewards.combine.ensemble import RankEnsemble
from steer.rewards.function import FunctionReward
from steer.rewards.registry import reward as reward_of


def contrast(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Not linear in the pixels, and dependent on the prompt."""
    return images.flatten(1).std(1) * torch.tensor([float(len(p)) for p in prompts])


def corner(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """One pixel: a score that a shift takes away."""
    return images[:, 0, 0, 0]


def pictures(count: int = 3, size: tuple[int, int] = (20, 30), seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def of(function: Any, *arguments: Any, **options: Any) -> Augmented:
    return Augmented(steer.reward(function, differentiable=True), *arguments, **options)


PROMPTS = ["a", "two words", "xyz"]


@pytest.mark.parametrize("n", [1, 3, 8, 40])
def test_equals_a_loop_over_the_changes(n: int) -> None:
    reward, x = of(contrast, n), pictures()
    each = torch.stack([contrast(reward.pictures(x, k), PROMPTS) for k in range(n)])
    torch.testing.assert_close(reward(x, PROMPTS), each.mean(0))


def test_one_picture_is_the_reward_itself() -> None:
    x = pictures()
    assert torch.equal(of(contrast, 1)(x, PROMPTS), contrast(x, PROMPTS))


def test_the_same_changes_for_every_picture_and_call() -> None:
    reward, x = of(contrast), pictures()
    together = reward(x, PROMPTS)
    torch.manual_seed(7)
    apart = torch.cat([reward(x[i : i + 1], PROMPTS[i]) for i in range(3)])
    torch.testing.assert_close(together, apart)


def test_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    of(contrast)(pictures(), "a")
    assert torch.equal(before, torch.get_rng_state())


def test_changes_of_fewer_are_the_first_of_more() -> None:
    x = pictures()
    for k in range(4):
        assert torch.equal(of(contrast, 4).pictures(x, k), of(contrast, 16).pictures(x, k))


def test_shifts_repeat_the_edge_and_stay_in_reach() -> None:
    reward = of(contrast, shift=0.1, brightness=0, noise=0)
    ramp = torch.arange(20.0).view(1, 1, 20, 1).expand(1, 3, 20, 30) / 20
    moved = set()
    for k in range(1, 30):
        column = (reward.pictures(ramp, k)[0, 0, :, 0] * 20).round().long()
        by = int(column[10]) - 10
        assert torch.equal(column, (torch.arange(20) + by).clamp(0, 19))
        moved.add(by)
    assert moved == {-2, -1, 0, 1, 2}


def test_changes_stay_within_the_range_of_pixels() -> None:
    reward, x = of(contrast, brightness=0.9, noise=0.5), pictures()
    for k in range(8):
        changed = reward.pictures(x, k)
        assert changed.shape == x.shape
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_a_score_that_hangs_on_one_pixel_shrinks() -> None:
    x = torch.zeros(2, 3, 40, 40)
    x[0, :, 0, 0] = 1.0  # the fooling picture
    x[1] = 0.6  # the honest one
    assert corner(x, ["", ""]).argmax() == 0
    assert of(corner, 8, shift=0.1)(x, "").argmax() == 1


def test_gradients_are_the_mean_of_those_of_the_changes() -> None:
    reward, x = of(contrast, 5), pictures().requires_grad_()
    (found,) = torch.autograd.grad(reward(x, PROMPTS).sum(), x)
    each = torch.stack([contrast(reward.pictures(x, k), PROMPTS) for k in range(5)])
    (wanted,) = torch.autograd.grad(each.mean(0).sum(), x)
    torch.testing.assert_close(found, wanted)
    assert reward.differentiable


def test_frames_of_a_video_change_together() -> None:
    frame = pictures(1)[0]
    video = frame.expand(1, 4, -1, -1, -1)
    changed = of(contrast).pictures(video, 3)
    assert torch.equal(changed, changed[:, :1].expand_as(changed))


def test_of_videos_is_the_same_inside_and_outside() -> None:
    x, inner = torch.rand(2, 4, 3, 20, 30), steer.reward(contrast)
    outside = Augmented(PerFrame(inner), 4)
    torch.testing.assert_close(outside(x, "abc"), PerFrame(Augmented(inner, 4))(x, "abc"))
    torch.testing.assert_close(
        outside(x, "abc"), resolve(Augmented(inner, 4), videos=True)(x, "abc")
    )


def test_a_weighted_sum_is_averaged_with_its_parts() -> None:
    inner = steer.reward({contrast: 0.7, corner: 0.3})
    reward, x = Augmented(inner, 4), pictures()
    parts = reward.parts(x, PROMPTS)
    assert {"contrast", "corner"} < set(parts)
    torch.testing.assert_close(reward(x, PROMPTS), 0.7 * parts["contrast"] + 0.3 * parts["corner"])


def test_a_condition_counts_in_every_change() -> None:
    inner = AtLeast(steer.reward(contrast), {steer.reward(corner): 0.5})
    reward, x = Augmented(inner, 6), pictures()
    each = torch.stack([inner(reward.pictures(x, k), PROMPTS) for k in range(6)])
    torch.testing.assert_close(reward(x, PROMPTS), each.mean(0))


def test_of_ranks_averages_the_parts_first() -> None:
    inner = RankEnsemble([(steer.reward(contrast), 1.0), (steer.reward(corner), 1.0)])
    reward, x = Augmented(inner, 4), pictures(6)
    assert reward.relative
    torch.testing.assert_close(reward(x, "abc"), inner.combine(reward.parts(x, "abc")))


def test_takes_what_rewards_take() -> None:
    x = (pictures() * 255).round().byte()
    arrays = [np.asarray(one.permute(1, 2, 0)) for one in x]
    reward = of(contrast)
    torch.testing.assert_close(reward(x, PROMPTS), reward(arrays, PROMPTS))
    sizes = [pictures(1)[0], pictures(1, (8, 8))[0]]
    assert reward(sizes, "abc").shape == (2,)


def test_asks_the_reward_for_few_pictures_at_once() -> None:
    seen = []

    def count(images: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(len(images))
        return contrast(images, prompts)

    Augmented(FunctionReward(count, batch=None), 8)(pictures(10), "a")
    assert seen == [30, 30, 20]
    seen.clear()
    Augmented(FunctionReward(count, batch=None), 2)(pictures(50, (4, 4)), "a")
    assert seen == [50, 50]


def test_shares_its_pictures_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plain = augmented.Augmented.pictures
    monkeypatch.setattr(
        augmented.Augmented, "pictures", lambda s, x, k: made.append(k) or plain(s, x, k)
    )
    both = of(contrast, 4) + of(corner, 4)
    both(pictures(), PROMPTS)
    assert sorted(made) == [0, 1, 2, 3]


def test_by_name() -> None:
    reward = reward_of("augmented:shapes", n=3, noise=0.0)
    assert isinstance(reward, Augmented)
    assert reward.reward.name == "shapes"
    assert (reward.n, reward.noise) == (3, 0.0)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(
        reward(x, "a red circle"),
        Augmented(steer.reward("shapes"), 3, noise=0.0)(x, "a red circle"),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 2.5}, "n=2.5"),
        ({"shift": -0.1}, "shift=-0.1"),
        ({"shift": 0.6}, "shift=0.6"),
        ({"brightness": 1.0}, "brightness=1.0"),
        ({"noise": float("nan")}, "noise=nan"),
    ],
)
def test_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(contrast, **options)


def test_refuses_what_is_no_reward() -> None:
    with pytest.raises(ValueError, match="not a reward"):
        Augmented(contrast)  # pyright: ignore[reportArgumentType]
