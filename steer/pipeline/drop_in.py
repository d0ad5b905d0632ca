"""The bare drop-in scheduler: `pipe.scheduler = steer.drop_in(pipe, ...)`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from steer.core.errors import SteerError
from steer.driver.counting import counting
from steer.driver.loop import Driven, Opening
from steer.driver.noise import Source
from steer.driver.safety import check_of
from steer.driver.scheduler import SteeredScheduler
from steer.driver.seeds import call_seeds
from steer.methods.default import for_compute
from steer.pipeline.arguments import COMPUTE, check_effort, resolve_reward
from steer.pipeline.run import Run
from steer.rewards.parts import check_prompts
from steer.search.method import Method


def drop_in(
    pipe: Any,
    *,
    reward: Any,
    prompt: str | Sequence[str],
    method: Method | None = None,
    compute: float | None = None,
) -> SteeredScheduler:
    """A scheduler with a search inside: `pipe.scheduler = steer.drop_in(pipe, reward=..., ...)`.

    The pipeline is then called as ever, any number of times, always for this prompt, with its own
    batch as the lane. `steer.guided` does more: it widens the batch, reports, and leaves the
    pipeline as it was.

    Args:
        pipe: A diffusers pipeline.
        reward: What to maximise, as for `steer.guided`.
        prompt: What the reward reads; a list if the pipeline is called with one.
        method, compute: As for `steer.guided`.

    Returns:
        A stand-in for `pipe.scheduler`.

    Raises:
        ValueError: An unknown reward or method, or `compute` out of range.
    """
    check_effort(method, compute)
    judge = resolve_reward(reward, pipe)
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    check_prompts(judge, texts)

    def search(opening: Opening) -> Driven:
        images, rest = divmod(len(opening.latents), len(texts))
        if rest:
            raise SteerError(
                f"prompt has {len(texts)} texts, and the pipeline's batch of "
                f"{len(opening.latents)} rows is no multiple of that"
            )
        generator = opening.step_kwargs.get("generator")
        seeds = call_seeds(generator, len(texts), images, opening.latents.device)
        source = Source(pipe, prompts=len(texts), images=images, lane_width=1, seeds=seeds)
        source.prepare = None  # its arguments were not seen
        chosen = method or for_compute(compute or COMPUTE, len(opening.schedule))
        ledger = steered.loop.ledger
        run = Run(
            pipe=pipe,
            texts=texts,
            images=images,
            reward=judge,
            judges=[],
            method=chosen,
            source=source,
            seed=seeds[0],
            latent=True,
            check=check_of(pipe, None),
            ledger=ledger,
        )
        return run.search(opening)

    steered = SteeredScheduler(pipe.scheduler, search)
    steered.loop.reusable, steered.loop.around = True, partial(counting, pipe)
    return steered
