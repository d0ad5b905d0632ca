"""The application of `steer serve`: one reward, a few addresses, limits on all that comes in.

Bodies are safetensors and JSON. Nothing that a request holds is run, and no path is read from it.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import torch
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError
from torch import Tensor

from steer.core.checks import whole
from steer.core.errors import SteerError, first_line
from steer.core.types import Reward
from steer.rewards.frames import takes_videos
from steer.rewards.parts import check_absolute, check_prompts, check_reward, scores_of
from steer.rewards.remote.wire import MEDIA, TOKEN, Card, card_of, pack, unpack


logger = logging.getLogger("steer.serve")
_TEXTS = 2**20  # bytes of a request beside its pixels: prompts, names, shapes


@dataclass(frozen=True)
class Limits:
    """What one request may bring.

    Attributes:
        pixels: Of all its images together, in float32.
        batch: Images.
    """

    pixels: int = 32 * 1024 * 1024
    batch: int = 32

    def __post_init__(self) -> None:
        whole("max_pixels", self.pixels, "--max-pixels 33554432")
        whole("max_batch", self.batch, "--max-batch 32")

    @property
    def bytes(self) -> int:
        """Largest body."""
        return self.pixels * 3 * 4 + _TEXTS


class Prompts(BaseModel):
    """Prompts that are to be scored later."""

    prompts: list[str]


class Server:
    """A reward and what it answers; one request at a time computes.

    Args:
        reward: What is served.
        limits: What one request may bring.
        token: What requests must hold as their bearer token; None asks for none.

    Raises:
        ValueError: A reward that scores videos, or one that only ranks the images of a call.
    """

    def __init__(self, reward: Reward, limits: Limits, token: str | None) -> None:
        check_reward(reward)
        check_absolute(reward, "steer serve")
        if takes_videos(reward):
            raise ValueError(
                f"reward {reward.name!r} scores videos: serve one for images, and give it to "
                "steer.rewards.PerFrame on the other side"
            )
        self.reward, self.limits, self.token = reward, limits, token
        self.card = card_of(reward, limits.batch, limits.pixels)
        self._lock = Lock()

    def authorise(self, request: Request) -> None:
        """Refuse a request without the token."""
        given, wanted = request.headers.get("authorization", ""), f"Bearer {self.token}"
        if self.token is not None and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise HTTPException(401, f"put it into the environment variable {TOKEN}")

    def describe(self) -> Card:
        """What the reward is."""
        return self.card

    async def check(self, request: Request) -> dict[str, int]:
        """See that the reward can score prompts."""
        data = await self._read(request)
        with _told():
            prompts = Prompts.model_validate_json(data).prompts
            check_prompts(self.reward, prompts)
        return {"prompts": len(prompts)}

    async def score(self, request: Request) -> Response:
        """Scores of images."""
        return await self._answer(request, self._score)

    async def differentiate(self, request: Request) -> Response:
        """Scores of images, and each one's gradient with respect to its image."""
        return await self._answer(request, self._differentiate)

    def _score(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"scores": scores_of(self.reward.name, self.reward, images, prompts)}

    def _differentiate(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        if not self.reward.differentiable:
            raise ValueError(f"reward {self.reward.name!r} has no gradient")
        images.requires_grad_()
        with torch.enable_grad():
            scores = scores_of(self.reward.name, self.reward, images, prompts)
            (found,) = torch.autograd.grad(scores.sum(), images)
        return {"scores": scores, "gradient": found}

    async def _answer(self, request: Request, work: _Work) -> Response:
        if request.headers.get("content-type") != MEDIA:
            raise HTTPException(415, f"send {MEDIA}")
        data = await self._read(request)
        return Response(await run_in_threadpool(self._worked, data, work), media_type=MEDIA)

    def _worked(self, data: bytes, work: _Work) -> bytes:
        with _told():
            images, prompts = self._unpacked(data)
            with self._lock:
                found = work(images, prompts)
            return pack(found, name=self.card.name, version=self.card.version)

    def _unpacked(self, data: bytes) -> tuple[Tensor, list[str]]:
        """Images and prompts of a request; HTTPException where they are none, or too many."""
        tensors, facts = unpack(data)
        images, prompts = tensors.get("images"), facts.get("prompts")
        if images is None or images.dtype not in (torch.float32, torch.float64) or images.ndim != 4:
            raise ValueError("images: send one tensor (B, 3, H, W) of float32 or float64")
        if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
            raise ValueError("prompts: send a list of texts")
        count, _, height, width = images.shape
        if count > self.limits.batch:
            raise HTTPException(413, f"{count} images: --max-batch is {self.limits.batch}")
        if count * height * width > self.limits.pixels:
            raise HTTPException(
                413, f"{count * height * width} pixels: --max-pixels is {self.limits.pixels}"
            )
        return images, prompts

    async def _read(self, request: Request) -> bytes:
        """The body, never more of it than the limit."""
        most, data = self.limits.bytes, bytearray()
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > most:
            raise _too_large(most)
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                raise _too_large(most)
        return bytes(data)


_Work: TypeAlias = Callable[[Tensor, list[str]], dict[str, Tensor]]


def make_app(reward: Reward, *, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The application that serves a reward for images; see `Server`."""
    server = Server(reward, limits or Limits(), token)
    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(server.authorise)]
    )
    app.get("/")(server.describe)
    app.post("/prompts")(server.check)
    app.post("/score")(server.score)
    app.post("/gradient")(server.differentiate)
    return app


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {most} bytes: raise --max-pixels")


@contextmanager
def _told() -> Iterator[None]:
    """Turn what a request or the reward is at fault for into an answer of one sentence."""
    try:
        yield
    except HTTPException:
        raise
    except ValidationError as error:
        raise HTTPException(422, "prompts: send a list of texts") from error
    except (SteerError, ValueError) as error:
        raise HTTPException(422, first_line(error)) from error
    except Exception as error:
        logger.exception("the reward failed")
        raise HTTPException(500, f"the reward failed: {first_line(error)}") from error
