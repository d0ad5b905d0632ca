"""What travels between `steer serve` and its clients: tensors as safetensors, facts as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from torch import Tensor

from steer.core.files.versions import versions
from steer.core.types import Reward
from steer.rewards.parts import identity


MEDIA = "application/x-safetensors"
PROTOCOL = 1
TOKEN = "STEER_TOKEN"
"""The environment variable that holds the token, unless another one is named."""


class Card(BaseModel):
    """What a server says of its reward; see `BaseReward`. An infinite end of the range is None.

    Attributes:
        protocol: Of this file.
        steer: The server's version of steer.
        batch: Most images that the reward itself takes at once.
        max_batch, max_pixels: Most images, and most pixels of all of them in float32, of one
            request.
    """

    protocol: int
    steer: str
    name: str = Field(max_length=1000)
    version: str = ""
    family: str = ""
    low: float | None = None
    high: float | None = None
    differentiable: bool = False
    needs_prompt: bool = True
    batch: int | None = Field(None, ge=1)
    max_batch: int = Field(ge=1)
    max_pixels: int = Field(ge=1)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest possible score."""
        low = -math.inf if self.low is None else self.low
        return low, math.inf if self.high is None else self.high


def card_of(reward: Reward, max_batch: int, max_pixels: int) -> Card:
    """The card of a reward on this machine."""
    name, version = identity(reward)
    low, high = (float(end) if math.isfinite(end) else None for end in reward.range)
    return Card(
        protocol=PROTOCOL,
        steer=versions()["steer"],
        name=name,
        version=version,
        family=str(getattr(reward, "family", None) or ""),
        low=low,
        high=high,
        differentiable=reward.differentiable,
        needs_prompt=reward.needs_prompt,
        batch=getattr(reward, "batch", None),
        max_batch=max_batch,
        max_pixels=max_pixels,
    )


def pack(tensors: Mapping[str, Tensor], **facts: Any) -> bytes:
    """Tensors and JSON-ready facts as the bytes of one safetensors file."""
    rows = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(rows, {name: json.dumps(fact) for name, fact in facts.items()})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `pack` packed.

    Raises:
        ValueError: The bytes are no safetensors file, or its facts no JSON.
    """
    try:
        tensors = safetensors.torch.load(data)
        end = 8 + int.from_bytes(data[:8], "little")
        facts = json.loads(data[8:end]).get("__metadata__", {})
        return tensors, {name: json.loads(fact) for name, fact in facts.items()}
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise ValueError("not safetensors bytes with facts as JSON") from error
