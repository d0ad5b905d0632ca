"""Rewards to log-weights: the potentials of Feynman-Kac steering.

A particle filter that aims at p(x0) exp(scale * r(x0)) may weight its particles on the way by any
potentials G_s, as long as the last one makes their product along every path exp(scale * r(x0))
(Singhal et al. 2025, "A general framework for inference-time scaling and steering of diffusion
models", arXiv:2501.06848, section 3). With r_s the reward judged at step s:

    difference   G_s = exp(scale_s r_s - scale_s' r_s')     s' the step judged before
    max          G_s = exp(scale_s max(r_1, ..., r_s))
    sum          G_s = exp(scale_s (r_1 + ... + r_s))
    last         G_s = exp(scale_s r_s)

and at the end, for each of them, exp(scale r(x0)) over the product so far (`finish`). `Memory`
holds this product and what is needed of earlier rewards; it follows a particle when it is resampled
(`Memory.take`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from steer.core.types import Step


_HUNDREDTHS = 100  # the published tempering schedule counts steps of 100


def tempering(step: Step, rate: float | None) -> float:
    """The share of the inverse temperature that is used at a step: min((1 + rate)^i - 1, 1).

    i is the share of steps done, in hundredths (DAS, Kim et al. 2025, arXiv:2501.05803, with
    rate 0.008). Without a rate it is 1.
    """
    if rate is None:
        return 1.0
    hundredths = _HUNDREDTHS * (step.index + 1) / step.count
    return min((1 + rate) ** hundredths - 1, 1.0)


def damping(step: Step, strength: float) -> float:
    """What is left of the inverse temperature at a step: `1 / (1 + strength P)`, in (0, 1].

    P = sigma^2 / (alpha^2 + sigma^2) is the variance that clean latents of variance 1 have when
    their noisy ones are known. A preview's reward r(E[x0 | x]) stands for log E[exp(lam r(x0)) | x]
    and is too sure of itself where P is large: for r = -(a/2) |x0 - c|^2 on Gaussian data it is too
    large by 1 + lam a P exactly ("Are we really tilting?", 2026, arXiv:2606.02884), so that
    `strength = lam a` mends it. A linear reward needs none. 0 leaves everything as it is.
    """
    return 1.0 / (1.0 + strength * step.noise_share**2)


@dataclass(frozen=True, eq=False)
class Memory:
    """What potentials need to know of every particle's earlier rewards.

    Attributes:
        total: Log of the product of all potentials so far, `(P, N)` float64.
        seen: Largest reward so far, or their sum, `(P, N)` float64; `None` before the first.
    """

    total: Tensor
    seen: Tensor | None = None

    @staticmethod
    def blank(prompts: int, particles: int) -> Memory:
        """The memory before the first reward."""
        return Memory(torch.zeros(prompts, particles, dtype=torch.float64))

    def take(self, ancestors: Tensor) -> Memory:
        """The memory of every child's ancestor; `ancestors (P, M)` int64."""
        seen = None if self.seen is None else self.seen.gather(1, ancestors)
        return Memory(self.total.gather(1, ancestors), seen)


Potential: TypeAlias = Callable[[Tensor, Tensor, Memory], tuple[Tensor, Memory]]
"""`(rewards (P, N), scale (P, 1), memory) -> (log G (P, N), memory after)`."""


def difference(rewards: Tensor, scale: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """The rise of the reward since the last scoring."""
    return finish(rewards, scale, memory)


def maximum(rewards: Tensor, scale: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """The best reward of the path so far."""
    seen = rewards if memory.seen is None else torch.maximum(memory.seen, rewards)
    return _weigh(scale * seen, memory, seen)


def total(rewards: Tensor, scale: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """The sum of all rewards of the path."""
    seen = rewards if memory.seen is None else memory.seen + rewards
    return _weigh(scale * seen, memory, seen)


def last(rewards: Tensor, scale: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """The reward itself, every time."""
    return _weigh(scale * rewards, memory, None)


def finish(rewards: Tensor, scale: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """The potential of the final reward: makes every path's product exp(scale * reward)."""
    return _weigh(scale * rewards - memory.total, memory, memory.seen)


def _weigh(log_g: Tensor, memory: Memory, seen: Tensor | None) -> tuple[Tensor, Memory]:
    return log_g, Memory(memory.total + log_g, seen)


POTENTIALS: dict[str, Potential] = {
    "difference": difference,
    "max": maximum,
    "sum": total,
    "last": last,
}
