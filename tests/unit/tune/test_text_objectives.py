"""Losses of wrong captions against DPO, sums written out, and finite differences; in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from families import seeded
from torch import Tensor
from torch.nn import functional as F

from steer.tune import TuneError
from steer.tune.text_objectives import caption_contrast, text_dpo


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("pull", [0.0, 0.3, 1.0])
def test_a_wrong_caption_is_a_loser_that_pulls_less(pull: float) -> None:
    right, wrong = drawn(5).requires_grad_(), drawn(5, seed=1).requires_grad_()
    loss = text_dpo(right, wrong, pull)
    torch.testing.assert_close(loss, -F.logsigmoid(right - wrong))
    loss.sum().backward()
    odds = torch.sigmoid(wrong - right).detach()
    torch.testing.assert_close(right.grad, -odds)
    torch.testing.assert_close(wrong.grad, pull * odds)


def test_an_untuned_policy_has_no_opinion_of_captions() -> None:
    assert text_dpo(torch.zeros(2), torch.zeros(2)).tolist() == pytest.approx([math.log(2)] * 2)


def test_captions_are_classes() -> None:
    """Softmax written out; a caption that fits nobody matters as a wrong one."""
    errors, keep = 0.2 * drawn(3, 4), 0.5
    found = caption_contrast(errors, 4.0, 0.07, keep)
    for i in range(3):
        odds = [math.exp(4 * math.exp(-e / 0.07)) for e in errors[i].tolist()]
        own = -math.log(odds[i] / sum(odds)) + keep * errors[i, i].item()
        assert found[i].item() == pytest.approx(own, rel=1e-12)


def test_one_caption_is_the_denoising_error() -> None:
    assert caption_contrast(torch.tensor([[0.3]]), keep=2.0).tolist() == pytest.approx([0.6])


def test_the_gradient_lowers_the_own_error_and_raises_others() -> None:
    errors = (0.1 * drawn(3, 3)).requires_grad_()
    assert torch.autograd.gradcheck(caption_contrast, (errors,))
    (gradient,) = torch.autograd.grad(caption_contrast(errors).sum(), errors)
    own = torch.eye(3, dtype=torch.bool)
    assert (gradient[own] > 0).all() and (gradient[~own] < 0).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: text_dpo(torch.zeros(1), torch.zeros(1), 1.5), "pull=1.5: must be in"),
        (lambda: caption_contrast(torch.zeros(3)), r"errors of shape \(3,\)"),
        (lambda: caption_contrast(torch.zeros(3, 2)), "at least one caption per image"),
        (lambda: caption_contrast(torch.zeros(1, 1), temperature=0.0), "temperature=0.0"),
        (lambda: caption_contrast(torch.zeros(1, 1), keep=-1.0), "not negative"),
    ],
)
def test_refused(call: Callable[[], Tensor], said: str) -> None:
    with pytest.raises(TuneError, match=said):
        call()
