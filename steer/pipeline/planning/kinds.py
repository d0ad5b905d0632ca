"""In which ways pilots are sampled: every step, strides up to a step or to the end, guided."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from steer.core.costs import Work
from steer.core.when import When, between


Window: TypeAlias = tuple[float, float]
"""Fractions of the steps from which and up to which particles are guided."""

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
        window: Where the reward's gradient guides them; `None` for nowhere.
        preview: What decodes their previews, as `guided(preview=)` takes it; empty for what the
            guided pipeline has.
    """

    count: int
    strides: int | None = None
    looks: tuple[int, ...] = ()
    at: tuple[float, ...] = ()
    window: Window | None = None
    preview: str = ""

    @property
    def name(self) -> str:
        """What records file it under: `"full"`, `"draft 4-12"`, `"short 10"`, `"full by tiny"`."""
        name = way(self.strides, self.looks[0] if self.looks else None, self.window)
        return f"{name} by {self.preview}" if self.preview else name

    @property
    def when(self) -> When | None:
        """Steps that are guided."""
        return None if self.window is None else between(*self.window)

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
        guided = n * len(self.when.indices(self.count)) if self.when is not None else 0
        previews = n * len(self.looks) + guided
        scores = previews + n * (1 + judged)
        return Work(self.rows * n, decodes=n, previews=previews, scores=scores, gradients=guided)


def way(strides: int | None, first: int | None, window: Window | None = None) -> str:
    """How a kind is named, whatever decodes its previews.

    Args:
        strides, window: See `Kind`.
        first: The first step whose previews are scored, if there is one.
    """
    name = "full" if strides is None else f"short {strides}"
    if strides is not None and first is not None:
        name = f"draft {strides}-{first}"
    return name if window is None else f"{name} guided {window[0]:g}-{window[1]:g}"


def kinds_of(
    count: int, windows: Sequence[Window] = (), previews: Sequence[str] = ()
) -> tuple[Kind, ...]:
    """All kinds that a call of `count` denoiser calls has, the full one first.

    Args:
        count: Denoiser calls.
        windows: Where guided kinds are guided; drafts only where their strides are over by then.
        previews: Further decoders: every kind with previews again for each.
    """
    found = [Kind(count, None, *_looks(_CUTS, count))]
    for strides, reach in _DRAFTS:
        looks, at = _looks((reach, *(f for f in _LATER if f > reach)), count)
        if looks and strides <= looks[0]:
            found.append(Kind(count, strides, looks, at))
    shares = dict.fromkeys(math.floor(share * count + 0.5) for share in _SHORT)
    found += [
        replace(kind, window=window)
        for window in windows
        for kind in found
        if kind.strides is None or min(between(*window).indices(count), default=0) >= kind.looks[0]
    ]
    found += [
        replace(kind, preview=name) for name in previews for kind in found if not kind.preview
    ]
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
