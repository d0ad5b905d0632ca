"""In which ways pilots are sampled: every step, strides up to a step, strides to the end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from steer.core.costs import Work


_CUTS = (0.3, 0.5, 0.65, 0.8)
_DRAFTS = ((4, 0.5), (4, 0.65), (8, 0.65))  # strides, and the fraction of the steps they reach
_LATER = (0.65, 0.7, 0.8)
_SHORT = (0.25, 0.4, 0.5, 0.75)


@dataclass(frozen=True)
class Kind:
    """One way to sample a pilot, of a call that makes `count` denoiser calls.

    Attributes:
        count: Denoiser calls of a plain call.
        strides: Denoiser calls that are strides; `None` for every step.
        looks: Steps whose x0 previews are scored, rising; strides reach the first of them, or the
            end where there is none.
        at: The fraction of the steps that each of `looks` stands for, as a cut names it.
    """

    count: int
    strides: int | None = None
    looks: tuple[int, ...] = ()
    at: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What records file it under: `"full"`, `"draft 4-12"`, `"short 10"`."""
        if self.strides is None:
            return "full"
        return f"draft {self.strides}-{self.looks[0]}" if self.looks else f"short {self.strides}"

    @property
    def rows(self) -> int:
        """Denoiser rows per particle."""
        if self.strides is None:
            return self.count
        return self.strides + (self.count - 1 - self.looks[0] if self.looks else 0)

    def work(self, n: int, judged: bool) -> Work:
        """What the pilots of one prompt spend, their judge's scores included.

        The pipeline decodes none: their latents are returned.
        """
        previews = n * len(self.looks)
        return Work(self.rows * n, decodes=n, previews=previews, scores=previews + n * (1 + judged))


def kinds_of(count: int) -> tuple[Kind, ...]:
    """All kinds that a call of `count` denoiser calls has, the full one first."""
    found = [Kind(count, None, *_looks(_CUTS, count))]
    for strides, reach in _DRAFTS:
        looks, at = _looks((reach, *(f for f in _LATER if f > reach)), count)
        if looks and strides <= looks[0]:
            found.append(Kind(count, strides, looks, at))
    shares = dict.fromkeys(math.floor(share * count + 0.5) for share in _SHORT)
    found += [Kind(count, calls) for calls in shares if 2 <= calls < count]
    return tuple({kind.name: kind for kind in reversed(found)}.values())[::-1]


def _looks(fractions: Iterable[float], count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Step index by fraction, as `Prune.cuts` has it: each step once, none at the last."""
    found: dict[int, float] = {}
    for fraction in fractions:
        calls = max(math.floor(fraction * count + 1e-9), 1)
        if calls < count:
            found.setdefault(calls - 1, fraction)
    return tuple(found), tuple(found.values())
