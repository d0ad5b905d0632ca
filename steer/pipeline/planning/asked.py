"""What a calibration is asked for: prompts, windows of guidance, decoders of previews."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steer.core.checks import whole
from steer.core.errors import RewardError
from steer.core.types import Reward
from steer.core.when import between
from steer.driver.decoding.previews import PreviewDecoder, preview_decoder
from steer.pipeline.planning.kinds import Window


LEAST = 4
"""Prompts at least: plans are chosen on one half of them and looked at on the other."""


def check_prompts(prompts: Sequence[str], n: int) -> None:
    """Raise ValueError for too few prompts, or too few particles of each."""
    if isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompts={prompts!r}: must be a list of texts")
    if len(prompts) < LEAST:
        raise ValueError(
            f"prompts: {len(prompts)} of them; give {LEAST} at least, and some 32 to tell "
            "plans apart"
        )
    whole("n", n, "n=16")
    if n < 2:
        raise ValueError(f"n={n}: particles per prompt, at least 2; write n=16")


def windows_of(windows: Sequence[Window], steps: int, reward: Reward) -> tuple[Window, ...]:
    """Windows as pairs; ValueError and RewardError for those where nothing can be guided."""
    if isinstance(windows, str) or not isinstance(windows, Sequence):
        raise ValueError(f"windows={windows!r}: a list of pairs, such as [(0.5, 0.95)]")
    found = []
    for window in windows:
        if not isinstance(window, Sequence) or isinstance(window, str) or len(window) != 2:
            raise ValueError(
                f"windows={windows!r}: {window!r} is no pair of fractions, such as (0.5, 0.95)"
            )
        first, last = window
        if not between(first, last).indices(steps):
            raise ValueError(
                f"windows={windows!r}: no step of {steps} lies in {tuple(window)}; widen it"
            )
        found.append((float(first), float(last)))
    if found and not reward.differentiable:
        raise RewardError(
            f"windows={windows!r}: reward {reward.name!r} is not differentiable, so nothing can be "
            "guided; leave windows out"
        )
    return tuple(dict.fromkeys(found))


def decoders_of(previews: Sequence[str], pipe: Any) -> dict[str, PreviewDecoder | None]:
    """Decoders by name; ValueError for one that does not fit the pipeline."""
    if isinstance(previews, str) or not isinstance(previews, Sequence):
        raise ValueError(f"previews={previews!r}: a list of names, such as ['tiny']")
    for name in previews:
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"previews={previews!r}: {name!r} is no name of a decoder that a file can hold, "
                "such as 'tiny'; a module goes to guided(preview=)"
            )
    return {name: preview_decoder(pipe, name) for name in previews}
