"""What rewards return or raise that is no score: one clear sentence each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer.core.errors import RewardError
from steer.rewards import reward
from steer.rewards.parts import parts_of, score_all


IMAGES = torch.linspace(0, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
PROMPTS = ["a", "bbb"]
ODD = {
    "sparse": lambda: torch.ones(2).to_sparse(),
    "without data": lambda: torch.ones(2, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(1)]),
}


class Own:
    """A reward of a user's own, of no base class."""

    name, differentiable, range, needs_prompt = "own", False, (0.0, 1.0), True

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.answer()


def empty() -> Tensor:
    return next(iter([]))


@pytest.mark.filterwarnings("ignore:.*nested tensors", "ignore:.*deprecated")
@pytest.mark.parametrize("what", ODD)
def test_tensors_that_hold_no_scores_are_named(what: str) -> None:
    judge = reward(lambda images, prompts: ODD[what](), name="mine")
    for call in (judge, lambda x, texts: parts_of(Own(ODD[what]), x, texts)):
        with pytest.raises(RewardError, match=rf"reward '(mine|own)' returned a tensor.* {what}"):
            call(IMAGES, PROMPTS)


def test_stop_iteration_is_an_error_of_the_reward() -> None:
    judge = reward(lambda images, prompts: empty(), name="mine")
    with pytest.raises(RewardError, match=r"reward 'mine' raised StopIteration.*next\(\)"):
        judge(IMAGES, PROMPTS)
    with pytest.raises(RewardError, match="reward 'own' raised StopIteration"):
        score_all({"own": Own(empty)}, IMAGES, PROMPTS)
    with pytest.raises(RewardError, match="reward 'own' raised StopIteration"):
        parts_of(Own(empty), IMAGES, PROMPTS)


@pytest.mark.parametrize("method", [steer.BestOfN(2), steer.SMC(2)])
def test_stop_iteration_does_not_end_a_search(method: Any) -> None:
    pipe = steer.shapes.pipeline(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    call = steer.guided(pipe, Own(empty), method=method)
    with pytest.raises(RewardError, match="reward 'own' raised StopIteration"):
        call("a red circle", num_inference_steps=2)
