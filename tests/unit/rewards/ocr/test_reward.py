"""The OCR reward on its real weights: words drawn by Pillow, right and wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from rendered import as_tensor, blurred, noisy, page

import steer
from steer.jobs.pipelines import load_pipeline
from steer.jobs.sample_job import SampleJob
from steer.jobs.sampling import Sampler
from steer.rewards.frames import PerFrame
from steer.rewards.ocr.reward import OcrReward


OPEN = 'a shop with a sign that says "OPEN LATE"'


@pytest.fixture(scope="module")
def reward() -> Iterator[OcrReward]:
    made = steer.reward("ocr", threads=1)
    assert isinstance(made, OcrReward)
    yield made


def test_right_wrong_and_missing_letters_are_told_apart(reward: OcrReward) -> None:
    pages = [page(text) for text in ("OPEN LATE", "OPEM LATE", "OPN LATE", "CAFE", "")]
    scores = reward(as_tensor(*pages), OPEN).tolist()
    assert scores[:3] == pytest.approx([1, 7 / 8, 7 / 8])
    assert scores[3] < 0.5
    assert scores[4] == 0


def test_noise_and_blur_that_people_read_through(reward: OcrReward) -> None:
    clean = page("OPEN LATE")
    scores = reward(as_tensor(noisy(clean, 40), blurred(clean, 2)), OPEN)
    assert scores.tolist() == [1, 1]
    assert reward(as_tensor(blurred(clean, 20)), OPEN).item() < 0.5


def test_lines_colours_and_junk(reward: OcrReward) -> None:
    two = page("OPEN", "LATE")
    red = page("open late", ink="red", paper="blue")
    junk = page("OPEN LATE", "XKCD QRST")
    within = page("reopen latex things", size=28)
    scores = reward(as_tensor(two, red, junk, within), OPEN).tolist()
    assert scores[:2] == [1, 1]
    assert scores[2] == pytest.approx(1 - 0.5 * 8 / 16)
    assert scores[3] < 0.55


def test_case_and_spacing_are_options() -> None:
    lower = as_tensor(page("open late"))
    assert steer.reward("ocr", case=True, threads=1)(lower, OPEN).item() < 0.5
    assert steer.reward("ocr", spacing=True, threads=1)(lower, OPEN).item() == 1


def test_several_quotes(reward: OcrReward) -> None:
    prompt = 'a door with "PUSH" above and "PULL" below'
    both, one = page("PULL", "PUSH"), page("PUSH")
    scores = reward(as_tensor(both, one), prompt).tolist()
    assert scores[0] == 1
    assert 0.4 < scores[1] < 0.8


def test_a_prompt_without_quotes_is_refused_before_sampling(reward: OcrReward) -> None:
    pipe = load_pipeline("shapes", "cpu", torch.float32)
    calls = []
    pipe.scheduler.step = lambda *args, **kwargs: calls.append(args)
    with pytest.raises(ValueError, match="'a cat' has none: write it as in: a sign that says"):
        steer.guided(pipe, {reward: 1.0})("a cat")
    assert not calls
    with pytest.raises(ValueError, match="has none"):
        steer.drop_in(pipe, reward=reward, prompt="a cat")
    with pytest.raises(ValueError, match="'a cat' has none"):  # the second prompt, at once
        Sampler(SampleJob(('a "sign"', "a cat"), reward="ocr"), pipe)


def test_frames_of_videos(reward: OcrReward) -> None:
    frames = as_tensor(page("OPEN LATE"), page(""))
    assert PerFrame(reward)(frames[None], OPEN).tolist() == [0.5]


def test_it_is_silent_and_leaves_gradients_alone(
    reward: OcrReward, capfd: pytest.CaptureFixture[str]
) -> None:
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert reward(images, OPEN).tolist() == [0]
    assert not any(capfd.readouterr())
    assert logging.getLogger("RapidOCR").level >= logging.ERROR


@pytest.mark.parametrize(("option", "value"), [("extra", 1.5), ("threads", 0), ("batch", 0)])
def test_bad_options(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option}="):
        steer.reward("ocr", **{option: value})
