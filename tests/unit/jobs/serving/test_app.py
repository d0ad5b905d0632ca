"""A served reward gives what the local one gives, and refuses what it should."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from chat_servers import running
from fastapi import FastAPI

import steer
from steer.core.errors import RewardError
from steer.jobs.serving.app import Limits, make_app
from steer.rewards.frames import PerFrame
from steer.rewards.function import FunctionReward
from steer.rewards.remote.wire import MEDIA, pack


PROMPTS = ["a red circle", "two blue squares", "a green triangle"]


@pytest.fixture(scope="module")
def local() -> Any:
    return steer.reward("shapes", device="cpu")


@pytest.fixture(scope="module")
def url(local: Any) -> Iterator[str]:
    with running(make_app(local)) as address:
        yield address


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEER_TOKEN", raising=False)


def pictures(count: int = 3, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def plain(function: Any = lambda images, prompts: images.mean((1, 2, 3)), **declared: Any) -> Any:
    return FunctionReward(function, name="plain", **declared)


def test_scores_and_gradients_are_the_local_ones_bit_by_bit(local: Any, url: str) -> None:
    remote = steer.reward(url)
    assert torch.equal(remote(pictures(), PROMPTS), local(pictures(), PROMPTS))
    both = [pictures().requires_grad_() for _ in range(2)]
    for reward, images in zip((local, remote), both, strict=True):
        reward(images, PROMPTS).sum().backward()
    assert torch.equal(both[0].grad, both[1].grad)  # pyright: ignore[reportArgumentType]
    assert both[0].grad is not None and both[0].grad.abs().sum() > 0


def test_it_declares_what_the_reward_declares(local: Any, url: str) -> None:
    remote = steer.reward(url)
    for name in ("name", "range", "family", "differentiable", "needs_prompt", "version"):
        assert getattr(remote, name) == getattr(local, name)


def test_in_mixtures_and_searches(local: Any, url: str) -> None:
    mixed = steer.reward(f"{url}=2,compressibility=0")
    torch.testing.assert_close(mixed(pictures(), PROMPTS), 2 * local(pictures(), PROMPTS))


def test_several_clients_at_once_are_answered_one_by_one() -> None:
    inside, most = [0], [0]

    def slow(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        found = images.mean((1, 2, 3))
        inside[0] -= 1
        return found

    with running(make_app(plain(slow))) as address, ThreadPoolExecutor(6) as pool:
        batches = [torch.full((2, 3, 8, 8), k / 16) for k in range(12)]
        rewards = [steer.reward(address) for _ in range(3)]
        jobs = [pool.submit(rewards[k % 3], b, "a") for k, b in enumerate(batches)]
        for batch, job in zip(batches, jobs, strict=True):
            assert torch.equal(job.result(), batch.mean((1, 2, 3)))
    assert most == [1]


def test_large_batches_are_cut_to_the_server_s_limits() -> None:
    sizes: list[int] = []

    def noted(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        sizes.append(len(images))
        return images.mean((1, 2, 3))

    with running(make_app(plain(noted), limits=Limits(pixels=200, batch=5))) as address:
        remote = steer.reward(address)
        images = pictures(7, 8)
        assert torch.equal(remote(images, "a"), images.mean((1, 2, 3)))
        assert sizes == [3, 2, 2]
        with pytest.raises(ValueError, match=r"more than .* takes .* start it with a larger"):
            remote(pictures(1, 16), "a")


@pytest.mark.parametrize(
    ("shape", "words"), [((9, 3, 4, 4), "--max-batch is 5"), ((1, 3, 40, 40), "raise --max-pixels")]
)
def test_requests_that_are_too_large_are_413(shape: tuple[int, ...], words: str) -> None:
    with running(make_app(plain(), limits=Limits(pixels=1000, batch=5))) as address:
        data = pack({"images": torch.zeros(shape)}, prompts=["a"] * shape[0])
        data += b"\0" * 2**20 * (shape[2] > 10)
        for content in (data, iter([data])):  # with its length, and without
            answer = httpx.post(
                f"{address}/score", content=content, headers={"Content-Type": MEDIA}
            )
            assert answer.status_code == 413 and words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("tensors", "facts", "words"),
    [
        ({}, {"prompts": []}, "images: send one tensor"),
        ({"images": torch.zeros(1, 3, 4, 4).int()}, {"prompts": ["a"]}, "images: send one tensor"),
        ({"images": torch.zeros(1, 3, 4, 4)}, {}, "prompts: send a list of texts"),
        ({"images": torch.zeros(1, 3, 4, 4)}, {"prompts": [1]}, "prompts: send a list of texts"),
        ({"images": torch.zeros(2, 3, 4, 4)}, {"prompts": ["a"]}, "one prompt per image"),
        ({"images": torch.zeros(1, 4, 4, 4)}, {"prompts": ["a"]}, "images has shape"),
        ({"images": torch.full((1, 3, 4, 4), 9.0)}, {"prompts": ["a"]}, "expected \\[0, 1\\]"),
        ({"images": torch.full((1, 3, 4, 4), torch.nan)}, {"prompts": ["a"]}, "NaN pixels"),
    ],
)
def test_bad_requests_are_422(url: str, tensors: Any, facts: Any, words: str) -> None:
    headers = {"Content-Type": MEDIA}
    answer = httpx.post(f"{url}/score", content=pack(tensors, **facts), headers=headers)
    assert answer.status_code == 422
    assert re.search(words, answer.json()["detail"])


def test_other_content_and_hostile_bytes(url: str) -> None:
    assert httpx.post(f"{url}/score", content=b"x").status_code == 415
    headers = {"Content-Type": MEDIA}
    assert httpx.post(f"{url}/score", content=b"x" * 99, headers=headers).status_code == 422
    assert httpx.post(f"{url}/prompts", content=b"[" * 9999).status_code == 422
    assert httpx.get(f"{url}/../../etc/passwd").status_code == 404
    assert httpx.get(f"{url}/openapi.json").status_code == 404


def test_a_token_is_asked_of_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(make_app(plain(), token="abc")) as address:
        for verb, path in (("GET", "/"), ("POST", "/score"), ("POST", "/prompts")):
            for headers in ({}, {"Authorization": "Bearer abd"}):
                answer = httpx.request(verb, address + path, headers=headers)
                assert answer.status_code == 401
        with pytest.raises(RewardError, match=r"wants a token: .* variable STEER_TOKEN"):
            steer.reward(address)
        monkeypatch.setenv("STEER_TOKEN", "abc")
        remote = steer.reward(address)
        assert remote(pictures(), "a").shape == (3,)
        assert "abc" not in repr(remote)


def test_prompts_are_checked_over_the_wire() -> None:
    reward = plain()
    reward.check_prompts = refuse
    with running(make_app(reward)) as address:
        remote: Any = steer.reward(address)
        remote.check_prompts(["a"])
        with pytest.raises(ValueError, match="no b please"):
            remote.check_prompts(["a", "b"])


def refuse(prompts: list[str]) -> None:
    if "b" in prompts:
        raise ValueError("no b please")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda images, prompts: images.mean(), "returned \\(\\) for 3 images"),
        (lambda images, prompts: 1 / 0, "the reward failed: division by zero"),
    ],
)
def test_a_reward_that_fails_is_one_sentence(function: Any, words: str) -> None:
    with running(make_app(plain(function))) as address, pytest.raises(RewardError) as caught:
        steer.reward(address)(pictures(), "a")
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_server_that_is_gone_or_serves_something_else(local: Any) -> None:
    with running(make_app(local)) as address:
        remote = steer.reward(address)
    with pytest.raises(RewardError, match=r"cannot be reached .* start it with steer serve"):
        remote(pictures(), PROMPTS)
    port = int(address.rpartition(":")[2])
    with running(make_app(plain()), port), pytest.raises(RewardError, match="now serves 'plain'"):
        remote(pictures(), PROMPTS)
    other = FastAPI()
    other.get("/")(lambda: {"hello": 1})
    with running(other) as address, pytest.raises(RewardError, match="is no server of rewards"):
        steer.reward(address)
    other = FastAPI()
    card = {"protocol": 9, "steer": "9", "name": "x", "max_batch": 1, "max_pixels": 1}
    other.get("/")(lambda: card)
    with running(other) as address, pytest.raises(RewardError, match="speaks protocol 9"):
        steer.reward(address)


def test_what_cannot_be_served() -> None:
    with pytest.raises(ValueError, match="only rank the candidates"):
        make_app(steer.reward("rank(compressibility,incompressibility)"))
    with pytest.raises(ValueError, match="scores videos: serve one for images"):
        make_app(PerFrame(plain()))
    with pytest.raises(ValueError, match="max_batch=0"):
        Limits(batch=0)


@pytest.mark.parametrize("name", ["http://", "http://me:pw@host", "http:host", "https://h?k=1"])
def test_addresses_that_cannot_be_read(name: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        steer.reward(name)
