"""Lookahead sets: short runs made once, for any number of guided calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steer.core.types import Population, wide
from steer.rewards.thresholds.scores import identity
from steer.search.context import Context
from steer.search.lookahead import LookaheadSet, look_ahead
from steer.search.method import Method


@dataclass(frozen=True)
class _LookAhead(Method):
    """A method that looks ahead, keeps what it saw, and returns the best of it."""

    n: int
    through: int
    found: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)

    def cost(self, steps: int) -> int:
        return self.n * min(self.through, steps)

    def __call__(self, ctx: Context, start: Population) -> Any:
        sets = yield from look_ahead(ctx, start, self.n * ctx.images, self.through)
        rows = []
        for prompt, (latents, rewards) in sets.items():
            self.found[ctx.prompts[prompt]] = (latents.to(wide(start.x).dtype), rewards.float())
            best = rewards.argsort(descending=True)[: ctx.images]
            rows.append(latents[best].to(start.x.dtype))
        prompts = [prompt for prompt in sets for _ in range(ctx.images)]
        return ctx.starts.adopt(torch.cat(rows), prompts)


def lookaheads(
    guided: Any,
    prompts: Sequence[str],
    *,
    n: int = 32,
    through: int = 4,
    seed: int = 0,
    **call: Any,
) -> LookaheadSet:
    """Look ahead once, for any number of guided calls with the same prompts.

        ahead = steer.pipeline.lookaheads(guided, prompts, n=32, num_inference_steps=20)
        ahead.save("ahead.safetensors")
        method = steer.methods.LookaheadGuidance(4, lookahead=ahead)
        guided(prompt, method=method, num_inference_steps=20)

    The pipeline may be another one than the calls', such as a few-step model that shares their
    latent space.

    Args:
        guided: A guided pipeline; its reward judges, its method is not used.
        prompts: Different texts.
        n: Samples per prompt.
        through: Steps per sample, spread over the pipeline's own grid.
        seed: Of the noises; prompt i starts from a generator seeded with `seed + i`.
        **call: What else the pipeline is given (`num_inference_steps`, `height`, ...).

    Raises:
        ValueError: No prompts, arguments that are set here, or a reward that only ranks candidates.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}: must be a list of texts")
    for name, value in (("n", n), ("through", through)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number, at least 1")
    taken = {"prompt", "generator", "method", "compute", "num_images_per_prompt"} & set(call)
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))}: set by lookaheads itself; leave it out")
    method = _LookAhead(n, through)
    for number, prompt in enumerate(dict.fromkeys(prompts)):
        generator = torch.Generator().manual_seed(seed + number)
        given = {"output_type": "latent", **call, "prompt": prompt, "generator": generator}
        guided(**given, method=method)
    latents = {prompt: pair[0].cpu() for prompt, pair in method.found.items()}
    rewards = {prompt: pair[1].cpu() for prompt, pair in method.found.items()}
    return LookaheadSet(latents, rewards, identity(guided.reward))
