"""A reward in another process, behind `steer serve`: same scores, gradients too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import httpx
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.autograd.function import once_differentiable

from steer.core.checks import positive
from steer.core.errors import RewardError, first_line
from steer.core.files.versions import versions
from steer.core.warn import warn
from steer.rewards.base import BaseReward
from steer.rewards.remote.addresses import is_address, is_open
from steer.rewards.remote.wire import MEDIA, PROTOCOL, TOKEN, Card, pack, unpack


class ServedReward(BaseReward):
    """A reward behind an address, which declares what the server's reward declares.

    Attributes:
        url: Where it is.
        card: What the server says of it.

    Args:
        url: Where it is.
        client: How it is asked.

    Raises:
        RewardError: Nothing answers there, or something else than `steer serve`.
    """

    def __init__(self, url: str, client: httpx.Client) -> None:
        self.url, self._client = url, client
        self.name = url  # until it is known, for errors
        self.card = self._read_card()
        card = self.card
        self.name, self.version, self.family = card.name, card.version, card.family
        self.range, self.needs_prompt = card.range, card.needs_prompt
        self.differentiable = card.differentiable
        self.batch = min(card.batch or card.max_batch, card.max_batch)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise ValueError for a prompt that the server's reward cannot score."""
        self._request("POST", "/prompts", json={"prompts": list(prompts)})

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        most = self._most(images)
        parts = [slice(at, at + most) for at in range(0, len(images), most)]
        wanted = self.differentiable and torch.is_grad_enabled() and images.requires_grad
        scores = [
            _Served.apply(images[part], prompts[part], self)
            if wanted
            else self.ask("/score", images[part], prompts[part])["scores"].to(images.device)
            for part in parts
        ]
        return torch.cat(scores)

    def ask(self, path: str, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the server answers about images: `scores` `(b,)`; from `/gradient` also `gradient`,
        of every image's score with respect to that image.

        Raises:
            RewardError: It answers something else, or its reward is not the one that it was.
        """
        data = pack({"images": images}, prompts=list(prompts))
        answer = self._request("POST", path, content=data, headers={"Content-Type": MEDIA})
        try:
            tensors, facts = unpack(answer)
        except ValueError as error:
            raise self._error("answers with something that is no scores: restart it") from error
        who = (facts.get("name"), facts.get("version"))
        if who != (self.card.name, self.card.version):
            raise self._error(
                f"now serves {who[0]!r}, version {who[1]!r}, and served {self.card.name!r}, "
                f"version {self.card.version!r}, when it was loaded: load it again, scores do not "
                "compare"
            )
        found = tensors.get("scores", torch.empty(0))
        if found.shape != (len(images),) or not found.is_floating_point():
            raise self._error(
                f"returned {tuple(found.shape)} scores for {len(images)} images: restart it"
            )
        gradient = tensors.get("gradient")
        if path == "/gradient" and (gradient is None or gradient.shape != images.shape):
            raise self._error("returned no gradient of the images' shape: restart it")
        return tensors

    def _most(self, images: Tensor) -> int:
        """Images of one request; ValueError where not even one fits."""
        pixels = images.shape[-2] * images.shape[-1] * max(1, images.element_size() // 4)
        most = self.card.max_pixels // pixels
        if not most:
            height, width = images.shape[-2:]
            raise ValueError(
                f"images of {height} x {width} pixels are more than {self.url} takes "
                f"({self.card.max_pixels} pixels): start it with a larger --max-pixels"
            )
        return most

    def _read_card(self) -> Card:
        data = self._request("GET", "/")
        try:
            card = Card.model_validate_json(data)
        except ValidationError as error:
            raise self._error("is no server of rewards: start one with steer serve") from error
        if card.protocol != PROTOCOL:
            raise self._error(
                f"speaks protocol {card.protocol}, this steer {PROTOCOL}: use one version of steer "
                f"on both sides (there {card.steer}, here {versions()['steer']})"
            )
        if card.steer != versions()["steer"]:
            warn(f"{self.url} runs steer {card.steer}, this is {versions()['steer']}")
        return card

    def _request(self, verb: str, path: str, **how: Any) -> bytes:
        try:
            answer = self._client.request(verb, self.url + path, **how)
        except httpx.TimeoutException:
            raise self._error(
                f"gives no answer within timeout={self._client.timeout.read:g} s: raise timeout="
            ) from None
        except httpx.HTTPError as error:
            raise self._error(
                f"cannot be reached ({first_line(error)}): start it with steer serve, and run again"
            ) from None
        if answer.status_code == 200:
            return answer.content
        said = _detail(answer)
        if answer.status_code == 401:
            raise self._error(f"wants a token: {said}")
        raise self._error(f"refuses ({answer.status_code}): {said}")

    def _error(self, what: str) -> RewardError:
        named = "" if self.name == self.url else f" ({self.name!r})"
        return RewardError(f"reward {self.url}{named} {what}")


class _Served(torch.autograd.Function):
    """Scores of a server, whose gradient comes with them: a score depends on its own image only."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, prompts: Sequence[str], reward: ServedReward) -> Tensor:
        found = reward.ask("/gradient", images, prompts)
        ctx.save_for_backward(found["gradient"].to(images))
        return found["scores"].to(images.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return grad[:, None, None, None] * gradient, None, None


def _detail(answer: httpx.Response) -> str:
    """The sentence in an answer that is an error, or what it is called."""
    try:
        said = answer.json()["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = None
    return first_line(ValueError(said)) if isinstance(said, str) else answer.reason_phrase


def http(
    place: str, *, timeout: float = 300.0, retries: int = 2, token_env: str = TOKEN
) -> ServedReward:
    """The reward that `steer serve` serves at an address, as in `"http://gpu-box:8420"`.

    Args:
        place: The address after `http:`.
        timeout: Seconds for one request, the wait for other clients included.
        retries: Further attempts to connect.
        token_env: The environment variable that holds the server's token, where it wants one.

    Raises:
        ValueError: An address or an option that cannot be used.
        RewardError: Nothing answers there, or something else than `steer serve`.
    """
    return _connect(f"http:{place}", timeout, retries, token_env)


def https(
    place: str, *, timeout: float = 300.0, retries: int = 2, token_env: str = TOKEN
) -> ServedReward:
    """`http`, encrypted: for a server behind a proxy that ends TLS."""
    return _connect(f"https:{place}", timeout, retries, token_env)


def _connect(url: str, timeout: float, retries: int, token_env: str) -> ServedReward:
    url = url.rstrip("/")
    if not is_address(url):
        raise ValueError(
            f"reward={url!r}: not an address; write http://<host>:<port> of a steer serve, without "
            "user or password"
        )
    positive("timeout", timeout, none=False)
    if type(retries) is not int or retries < 0:
        raise ValueError(f"retries={retries!r}: must be a whole number, 0 or more")
    token = os.environ.get(token_env, "")
    if token and is_open(url):
        warn(f"{url} is not encrypted, and the token in {token_env} travels to it: tunnel it")
    return ServedReward(
        url,
        httpx.Client(
            transport=httpx.HTTPTransport(retries=retries),
            timeout=timeout,
            headers={"Authorization": f"Bearer {token}"} if token else {},
        ),
    )
