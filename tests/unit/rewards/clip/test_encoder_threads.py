"""Rewards share encoders: prompts from several threads neither mix nor get lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from steer.rewards.registry import reward


def test_prompts_from_several_threads() -> None:
    encoder = reward("shapes-clip").encoder
    texts = [[f"a red circle {k} {n}" for n in range(4)] for k in range(40)]
    alone = [encoder.prompts(text) for text in texts]
    before, encoder.cache = encoder.cache, 3  # what one thread drops, another is about to use
    encoder._features.clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                for found, wanted in zip(pool.map(encoder.prompts, texts), alone, strict=True):
                    assert torch.allclose(found, wanted, atol=1e-6)
    finally:
        encoder.cache = before
