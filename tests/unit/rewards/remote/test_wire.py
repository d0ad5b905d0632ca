"""Tensors and facts as bytes, and what hostile bytes do."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, strategies as st

from steer.rewards.remote.wire import pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_and_facts_come_back(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 5, 7, dtype=dtype).transpose(2, 3)
    tensors, facts = unpack(pack({"images": images}, prompts=["ä", '"'], version=""))
    assert torch.equal(tensors["images"], images)
    assert facts == {"prompts": ["ä", '"'], "version": ""}


def header(content: object) -> bytes:
    text = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        header([]),
        header({"images": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
        header({"__metadata__": {"prompts": "["}}),
        header({"__metadata__": {"prompts": "[" * 100_000}}),
        header(b"[" * 100_000),
    ],
)
def test_damaged_bytes_are_one_sentence(data: bytes) -> None:
    with pytest.raises(ValueError, match="not safetensors bytes"):
        unpack(data)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_read_or_refused(noise: bytes, at: int) -> None:
    whole = pack({"images": torch.zeros(2)}, prompts=["a"])
    for data in (noise, whole[:at] + noise, whole[: min(at, len(whole))]):
        with suppress(ValueError):
            unpack(data)
