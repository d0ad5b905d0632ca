"""Cheap samples of a prompt with their rewards, and the guidance that they give in closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steer.core.rows import rows_by_prompt
from steer.core.types import Population, Reward
from steer.rewards.parts import check_absolute, identity
from steer.search.context import Context
from steer.search.short_runs import Asking, judge, pure_noise, run, short_grid


_FORMAT = "steer-lookahead-1"
_NOISELESS = 1e-5  # rewards that differ by less than this share of their size are one reward


@dataclass(frozen=True, eq=False)
class LookaheadSet:
    """Clean latents of some prompts, and their rewards; `steer.pipeline.lookaheads` makes them.

    Made once and used for any number of seeds: `LookaheadGuidance(lookahead=...)`.

    Attributes:
        latents: `(m, *latent)` per prompt, as they stand in the pipeline's loop.
        rewards: `(m,)` per prompt, float32.
        reward: Name and version of the reward.

    Raises:
        ValueError: No prompts, or numbers that do not fit together or are not finite.
    """

    latents: Mapping[str, Tensor]
    rewards: Mapping[str, Tensor]
    reward: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        if not self.latents or set(self.latents) != set(self.rewards):
            raise ValueError("latents and rewards: must name the same prompts, at least one")
        for prompt, latents in self.latents.items():
            rewards = self.rewards[prompt]
            if latents.ndim < 2 or rewards.shape != latents.shape[:1] or not len(rewards):
                raise ValueError(
                    f"prompt {prompt!r}: latents {tuple(latents.shape)} and rewards "
                    f"{tuple(rewards.shape)} must be (m, *latent) and (m,)"
                )
            if not (bool(latents.isfinite().all()) and bool(rewards.isfinite().all())):
                raise ValueError(f"prompt {prompt!r}: latents and rewards must be finite")

    def __repr__(self) -> str:
        sizes = sorted({len(rewards) for rewards in self.rewards.values()})
        return f"LookaheadSet({len(self.rewards)} prompts x {sizes}, reward={self.reward[0]!r})"

    def check(self, reward: Reward) -> None:
        """Raise ValueError unless the set was judged by this reward, in this version."""
        if self.reward != identity(reward):
            theirs, ours = (" ".join(filter(None, r)) for r in (self.reward, identity(reward)))
            raise ValueError(
                f"lookahead: judged by reward {theirs!r}, and this call optimises {ours!r}; make "
                "one for it with steer.pipeline.lookaheads(guided, prompts)"
            )

    def of(self, prompt: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and rewards of one prompt on the device of `like`, float64.

        Raises:
            ValueError: The prompt is not there, or its latents are not shaped like a row of `like`.
        """
        if prompt not in self.latents:
            raise ValueError(
                f"lookahead: has no samples of prompt {prompt!r}; add it to the prompts of "
                "steer.pipeline.lookaheads(guided, prompts), or leave lookahead out"
            )
        latents = self.latents[prompt]
        if latents.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"lookahead: latents of prompt {prompt!r} are {tuple(latents.shape[1:])}, and this "
                f"call's are {tuple(like.shape[1:])}: make it with the same height and width, and "
                "a pipeline of the same latent space"
            )
        return latents.to(like.device).double(), self.rewards[prompt].to(like.device).double()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {}
        for number, prompt in enumerate(self.latents):
            tensors[f"{number}.latents"] = self.latents[prompt].detach().cpu().contiguous()
            tensors[f"{number}.rewards"] = self.rewards[prompt].detach().cpu().float().contiguous()
        about = {"prompts": list(self.latents), "reward": self.reward}
        save_file(tensors, path, metadata={"format": _FORMAT, "about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> LookaheadSet:
        """Read what `save` wrote. Raises ValueError for a file that is none of those."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"format {metadata.get('format')!r}")
                about = json.loads(metadata["about"])
                prompts = list(enumerate(about["prompts"]))
                latents = {prompt: file.get_tensor(f"{k}.latents") for k, prompt in prompts}
                rewards = {prompt: file.get_tensor(f"{k}.rewards") for k, prompt in prompts}
                return cls(latents, rewards, tuple(about["reward"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"lookahead={str(path)!r}: cannot be read as a lookahead set ({error}); make one "
                "with steer.pipeline.lookaheads(guided, prompts).save(path)"
            ) from error


def pull_towards_reward(
    x: Tensor, alpha: float, sigma: float, latents: Tensor, rewards: Tensor
) -> tuple[Tensor, Tensor]:
    """How far a reward moves the posterior mean of an empirical mixture.

    Of data z_1..z_m seen through x = alpha z + sigma noise, the posterior weights are
    w = softmax(l), l_i = -|x - alpha z_i|^2 / (2 sigma^2), and with z_i counted exp(r_i) times,
    w^r = softmax(l + r). The difference of the two scores is alpha / sigma^2 times

        sum_i (w^r_i - w_i) z_i

    (LiDAR, arXiv:2602.03211), which is also the difference of the two posterior means of x0.

    Args:
        x: Noisy latents `(rows, *latent)`.
        alpha, sigma: Where they are; sigma above 0.
        latents: `(m, *latent)` float64.
        rewards: `(m,)` float64, as they stand in the exponent.

    Returns:
        The sum `(rows, *latent)` and the weights w^r `(rows, m)`, float64.
    """
    middle = latents.mean(0, keepdim=True)
    points = (latents - middle).flatten(1)  # centred: nothing large cancels
    rest = (x.double() - alpha * middle).flatten(1)
    logits = (alpha * rest @ points.T - alpha**2 / 2 * points.pow(2).sum(1)) / sigma**2
    tilted = (logits + rewards).softmax(1)
    return ((tilted - logits.softmax(1)) @ points).view(x.shape), tilted


def standardise(rewards: Tensor) -> Tensor:
    """`(m,)` rewards in standard deviations from their mean; zeros where all are equal."""
    spread = rewards.std(correction=0)
    if not float(spread) > _NOISELESS * float(rewards.abs().max()):
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / spread


def look_ahead(
    ctx: Context, start: Population, count: int, through: int
) -> Asking[dict[int, tuple[Tensor, Tensor]]]:
    """Short deterministic runs of `count` noises per prompt, and their rewards.

    The noises of `start` come first, fresh ones after them.

    Args:
        ctx: Where to ask, decode and score.
        start: Initial latents.
        count: Lookahead samples per prompt.
        through: Steps of the pipeline's own grid per run.

    Returns:
        Clean latents `(count, *latent)` and rewards `(count,)` by prompt, float64.

    Raises:
        ValueError: A reward that only ranks candidates.
        UnsupportedPipelineError: Fresh noises for a call that starts from an image.
    """
    check_absolute(ctx.reward, "lookahead")
    noises = _noises(ctx, start, count)
    grid, dtype = short_grid(ctx.steps, through), start.x.dtype
    clean = yield from run(ctx, noises, grid, dtype)
    rewards = judge(ctx, noises.at(clean), dtype)
    found = {}
    for prompt, rows in rows_by_prompt(noises.ids).items():
        found[prompt] = (clean[rows].double(), rewards[rows].double())
    ctx.tell("lookahead", noises.ids, None, reward=rewards.tolist())
    return found


def _noises(ctx: Context, start: Population, count: int) -> Population:
    """`count` initial latents per prompt, those of `start` first."""
    parts = []
    for prompt, everyone in rows_by_prompt(start.ids).items():
        rows = everyone[:count]
        parts.append(start.take(rows))
        fresh = count - len(rows)
        if not fresh:
            continue
        pure_noise(ctx, "looking ahead from more noises than it samples")
        names = ctx.starts.names([prompt] * fresh)
        scale = math.hypot(ctx.steps[0].alpha, ctx.steps[0].sigma)
        x = (scale * ctx.starts.noise(names, (), start.x)).to(start.x.dtype)
        ctx.starts.keep(names, x.unbind())
        parts.append(Population(x, names))
    return Population.join(parts)
