"""Rewards share encoders: what a prompt becomes hangs on no thread and on no other prompt."""

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


def test_features_do_not_hang_on_the_other_prompts() -> None:
    encoder = reward("shapes-clip").encoder
    texts = [f"{n} red circles and a blue square" for n in ("two", "three", "four", "five", "six")]
    encoder._features.clear()
    together = encoder.prompts(texts)
    encoder._features.clear()
    alone = torch.cat([encoder.prompts([text]) for text in reversed(texts)]).flip(0)
    assert torch.equal(together, alone)
