"""A judge behind the chat protocol, against a real tiny model, and against a server with faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import vlm_models
from chat_servers import Faulty, completion, failing, model_app, running
from fastapi import Response

import steer
from steer.core.errors import RewardError
from steer.rewards.families import families_in
from steer.rewards.models.vqa import vqa
from steer.rewards.remote.judge import RemoteJudge, openai, read_target


PROMPTS = ["a red circle", "a blue square", "a circle left of a square"]
KEY = "sk-very-secret"


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


@pytest.fixture
def url(faulty: Faulty) -> Iterator[str]:
    with running(faulty.app) as address:
        yield f"{address}/v1"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "STEER_REWARD_CACHE"):
        monkeypatch.delenv(name, raising=False)


def judge(url: str, **options: Any) -> RemoteJudge:
    return openai(f"m@{url}", **{"retries": 0, "timeout": 5.0, **options})


def greys(*levels: float) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 8, 8)


def test_a_real_model_scores_as_it_does_in_this_process(tmp_path: Path) -> None:
    folder = vlm_models.save("llava", tmp_path / "llava")
    question = "Does this figure show {prompt}? Please answer Yes or No."
    images = torch.rand(3, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    options: Any = {"yes": ("Yes", " Yes", "yes", " yes"), "no": ("No", " No", "no", " no")}
    local = vqa(str(folder), device="cpu", question=question, normalise=True, **options)
    with running(model_app(folder)) as address:
        remote = openai(f"tiny@{address}/v1", question=question, form="logprobs")
        scores = remote(images, PROMPTS)
    torch.testing.assert_close(scores, local(images, PROMPTS), atol=1e-5, rtol=0)
    assert remote.spent.requests == 3


def test_scores_keep_their_order_and_travel_at_once(faulty: Faulty, url: str) -> None:
    levels = [k / 16 for k in range(16)]
    reward = judge(url, concurrency=4)
    scores = reward(greys(*levels), PROMPTS[0]).tolist()
    eighths = [round(level * 255) / 255 for level in levels]
    assert scores == pytest.approx(eighths, abs=1e-5)
    assert 1 < faulty.most <= 4
    assert reward.form == "logprobs"
    assert (reward.spent.requests, reward.spent.prompt_tokens) == (16, 1600)


def test_by_name_it_is_seen_to_work_before_anything_is_drawn(faulty: Faulty, url: str) -> None:
    faulty.always = lambda body: completion("Yes", {"Yes": 0.4 if "red" in str(body) else 0.5})
    name = f"openai:m@{url}"
    with pytest.raises(steer.SteerError, match=f"weights of {url} .* both score 1: see"):
        steer.reward(name, retries=0)
    assert families_in(name) == {"vlm"}


def test_equal_questions_are_asked_once(faulty: Faulty, url: str) -> None:
    reward = judge(url)
    reward(greys(0.5, 0.5, 0.5), PROMPTS[0])
    reward(greys(0.5), PROMPTS[0])
    assert faulty.seen == 1
    reward(greys(0.5), PROMPTS[1])
    assert faulty.seen == 2


def test_a_server_without_log_probabilities_is_asked_for_numbers(
    faulty: Faulty, url: str, tmp_path: Path
) -> None:
    faulty.always = lambda body: completion("8/10" if "from 0" in str(body["messages"]) else "Yes")
    reward = judge(url, cache=tmp_path)
    with pytest.warns(UserWarning, match="tells no log-probabilities, so scores are numbers"):
        scores = reward(greys(0.2, 0.4), PROMPTS[0])
    assert scores.tolist() == pytest.approx([0.8, 0.8])
    assert reward.form == "number" and reward.version.startswith("number-")
    seen = faulty.seen
    again = judge(url, cache=tmp_path)  # the cache knows the form too
    assert again(greys(0.2, 0.4), PROMPTS[0]).tolist() == scores.tolist()
    assert faulty.seen == seen


def test_a_server_that_refuses_log_probabilities(faulty: Faulty, url: str) -> None:
    faulty.faults = [failing(400, "logprobs is not supported")]
    faulty.always = lambda body: completion("3")
    with pytest.warns(UserWarning, match="no log-probabilities"):
        assert judge(url)(greys(0.2), PROMPTS[0]).tolist() == pytest.approx([0.3])


FAULTS = {
    "html": (lambda: Response("<html>hello</html>", media_type="text/html"), "no chat completion"),
    "half": (lambda: Response('{"choices": [', media_type="application/json"), "no chat comple"),
    "other": (lambda: {"hello": 1}, "is no chat completion"),
    "nan": (
        lambda: Response(
            '{"choices":[{"message":{},"logprobs":{"content":[{"top_logprobs":'
            '[{"token":"Yes","logprob":NaN}]}]}}]}'
        ),
        "is no chat completion",
    ),
    "two": (lambda: completion("Yes") | {"choices": completion("Yes")["choices"] * 2}, "2 answers"),
    "zero": (lambda: completion("Yes") | {"choices": []}, "0 answers"),
    "bare": (lambda: completion("Yes"), "tells no log-probabilities: ask with form='number'"),
    "prose": (lambda: completion("The", {"The": 0.9}), "neither Yes nor No"),
    "429": (failing(429), r"asked too much \(429, 1 attempt\): lower concurrency="),
    "500": (failing(500, "no\nmemory"), r"fails \(500: .*look at the server's log"),
    "404": (failing(404), "has no model 'm': name one that it serves"),
    "400": (failing(400, "image too large"), r"refuses the request \(400: .*image too large"),
    "401": (failing(401), "wants a key, and there is none in OPENAI_API_KEY"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_one_sentence_and_loses_nothing(
    faulty: Faulty, url: str, tmp_path: Path, kind: str
) -> None:
    fault, words = FAULTS[kind]
    faulty.faults = [lambda: completion("Yes", {"Yes": 0.5, "No": 0.5})] * 2 + [fault]
    levels = greys(0.1, 0.2, 0.3, 0.4)
    with pytest.raises(RewardError, match=words) as caught:
        judge(url, form="logprobs", concurrency=1, cache=tmp_path)(levels, PROMPTS[0])
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"reward 'openai:m@{url}")
    before = faulty.seen
    again = judge(url, form="logprobs", concurrency=1, cache=tmp_path)
    assert again(levels, PROMPTS[0]).tolist()[:2] == [0.5, 0.5]
    assert again.spent.reused == 4 - (faulty.seen - before) >= 2


def test_faults_that_pass_are_tried_again(faulty: Faulty, url: str) -> None:
    faulty.faults = [failing(500)]
    assert judge(url, retries=1)(greys(1.0), PROMPTS[0]).item() == pytest.approx(1, abs=1e-5)
    assert faulty.seen == 2


def test_a_slow_server(faulty: Faulty, url: str) -> None:
    def slow() -> dict[str, Any]:
        time.sleep(1)
        return completion("Yes")

    faulty.faults = [slow]
    with pytest.raises(RewardError, match=r"no answer within timeout=0\.2 s \(1 attempt\): raise"):
        judge(url, timeout=0.2)(greys(0.5), PROMPTS[0])


def test_a_server_that_dies_and_comes_back(faulty: Faulty, tmp_path: Path) -> None:
    levels = greys(0.1, 0.2, 0.3)
    with running(faulty.app) as address:
        reward = judge(f"{address}/v1", cache=tmp_path)
        reward(levels[:2], PROMPTS[0])
    with pytest.raises(RewardError, match=r"cannot be reached \(1 attempt\): see that the server"):
        reward(levels, PROMPTS[0])
    with running(faulty.app, int(address.rpartition(":")[2])):
        again = judge(f"{address}/v1", cache=tmp_path)
        assert again(levels, PROMPTS[0]).tolist() == pytest.approx([0.1, 0.2, 0.3], abs=3e-3)
    assert (again.spent.requests, again.spent.reused) == (1, 2)


def test_the_key_is_sent_and_shown_nowhere(
    faulty: Faulty, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    reward = judge(url, cache=tmp_path)
    reward(greys(0.5), PROMPTS[0])
    assert faulty.keys == {f"Bearer {KEY}"}
    told = [repr(reward), reward.version]
    for status in (400, 401, 500):
        faulty.faults = [failing(status, f"bad key {KEY}")]
        with pytest.raises(RewardError) as caught:
            reward(greys(0.7), PROMPTS[0])
        told += [str(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)]
    told += [file.read_text() for file in tmp_path.rglob("*.json")]
    assert not any(KEY in text for text in told)


def test_further_fields_and_questions_are_part_of_the_request(faulty: Faulty, url: str) -> None:
    newer = {"seed": 3, "max_completion_tokens": 16}
    judge(url, request={"seed": 3}, question="Is it {prompt}?")(greys(0.5), "a {dog}")
    judge(url, request=newer)(greys(0.5), "a dog")
    body, other = faulty.bodies
    assert (body["max_tokens"], "max_tokens" in other) == (1, False)
    assert body["seed"] == 3 and body["temperature"] == 0 and body["top_logprobs"] == 20
    assert body["messages"][0]["content"][1]["text"] == "Is it a {dog}?"


@pytest.mark.parametrize(
    "target",
    ["m", "@http://x/v1", "m@ftp://x", "m@http://", "m@http://me:pw@x/v1", "m@http://x?k=1"],
)
def test_targets_that_cannot_be_read(target: str) -> None:
    with pytest.raises(ValueError, match="write openai:<model>@<url>"):
        read_target(target)


def test_targets() -> None:
    assert read_target("a/b@c@https://x:1/v1/") == ("a/b@c", "https://x:1/v1")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("form", "words"),
        ("question", "?"),
        ("number_question", "?"),
        ("concurrency", 0),
        ("timeout", 0),
        ("retries", -1),
    ],
)
def test_bad_options(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}="):
        openai("m@http://127.0.0.1:1/v1", **{option: value})
