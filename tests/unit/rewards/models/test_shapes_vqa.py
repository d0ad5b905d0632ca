"""The bundled world's second judge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import steer
from steer.core.errors import CheckpointError
from steer.rewards.families import families_in, kinship
from steer.shapes.captions import caption
from steer.shapes.drawing import place, render
from steer.shapes.scenes import sample_spec


@pytest.fixture(scope="module")
def judge():
    return steer.reward("shapes-vqa", device="cpu")


def scenes(count: int):
    rng = np.random.default_rng(5)
    specs = [sample_spec(rng, "held_out") for _ in range(count)]
    return render([place(spec, rng) for spec in specs]), [caption(spec) for spec in specs]


def test_a_picture_scores_higher_for_its_caption_than_for_others(judge):
    images, texts = scenes(24)
    own, other = judge(images, texts), judge(images, texts[1:] + texts[:1])
    assert bool(((own >= 0) & (own <= 1)).all())
    assert (own > other).float().mean() > 0.9


def test_batches_do_not_matter(judge):
    images, texts = scenes(6)
    images, texts = images.repeat(2, 1, 1, 1), texts * 2
    alone = torch.cat([judge(image[None], text) for image, text in zip(images, texts, strict=True)])
    torch.testing.assert_close(judge(images, texts), alone, atol=1e-4, rtol=1e-3)


def test_gradients_raise_the_score(judge):
    images, texts = scenes(4)
    images = images.roll(1, 0).requires_grad_()
    score = judge(images, texts).log().sum()
    (slope,) = torch.autograd.grad(score, images)
    assert slope.isfinite().all()
    step = 0.5 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    assert judge((images + step).detach().clamp(0, 1), texts).log().sum() > score


def test_it_is_no_kin_of_the_scorer(judge):
    scorer = steer.reward("shapes", device="cpu")
    pairs = [(a, b) for a in families_in(judge) for b in families_in(scorer)]
    assert pairs and not any(kinship(a, b) for a, b in pairs)


def test_a_caption_outside_the_grammar_says_what_the_grammar_accepts(judge):
    with pytest.raises(ValueError, match="unknown word 'fox'"):
        judge(torch.rand(1, 3, 64, 64), "a red fox")


def test_a_call_says_so_before_it_samples(judge):
    def refuse(*args, **kwargs):
        raise AssertionError("sampled")

    pipe = steer.shapes.pipeline(device="cpu")
    pipe.unet.forward = refuse
    with pytest.raises(ValueError, match="unknown word 'fox'"):
        steer.guided(pipe, judge, method=steer.BestOfN(2))("a red fox", num_inference_steps=2)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.safetensors.*pass checkpoint=FILE"):
        steer.reward("shapes-vqa", checkpoint=tmp_path / "no.safetensors", device="cpu")
