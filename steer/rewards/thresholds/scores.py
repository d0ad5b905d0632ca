"""Scores of untuned samples as they come in: exact, mergeable, whatever the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import ThresholdError
from steer.core.types import Reward
from steer.rewards.parts import identity


Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Tensor | NDArray[Any] | Sequence[float] | float


class Scores:
    """An accumulator of scores, with the prompts they belong to where those are known.

    All scores are kept (a float each), so what is fitted on them is exact, and merging the parts of
    a set gives what the whole set gives, bit for bit.

    Args:
        reward: What scored them: a reward, or its name.
        version: The reward's version; read off a reward that has a `version`.
        model: What made the images, for the record.
    """

    def __init__(self, reward: str | Reward = "", *, version: str = "", model: str = "") -> None:
        self.reward, self.version = identity(reward, version)
        self.model = model
        self._own: dict[str | None, list[float]] = {}

    def add(self, scores: Numbers, prompts: str | Sequence[str] | None = None) -> Scores:
        """Take in scores, and return self.

        Args:
            scores: A number, or any shape of numbers.
            prompts: One per score, or one for all.

        Raises:
            ThresholdError: A score that is not finite, or prompts that are not one per score.
        """
        values = as_floats(scores)
        names = [prompts] * len(values) if prompts is None or isinstance(prompts, str) else prompts
        if len(names) != len(values):
            raise ThresholdError(f"{len(names)} prompts for {len(values)} scores: give one each")
        for name, value in zip(names, values.tolist(), strict=True):
            self._own.setdefault(name, []).append(value)
        return self

    def merge(self, other: Scores) -> Scores:
        """The scores of both.

        Raises:
            ThresholdError: They come from different rewards, versions or models.
        """
        for what in ("reward", "version", "model"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise ThresholdError(
                    f"scores of {what} {mine!r} cannot be merged with scores of {what} {theirs!r}: "
                    "fit one threshold for each"
                )
        both = self.copy()
        for prompt, values in other._own.items():
            both._own.setdefault(prompt, []).extend(values)
        return both

    def copy(self, reward: str | Reward = "", model: str = "") -> Scores:
        """The same scores in an accumulator of its own, of a reward and model if none are known.

        Raises:
            ThresholdError: They are known to be of another reward, or another version of it.
        """
        known, told = (self.reward, self.version), identity(reward)
        if self.reward and told[0] and told != known:
            raise ThresholdError(
                f"reward={label(*told)}, and the scores are of {label(*known)}: leave reward out"
            )
        name, version = known if self.reward else told
        twin = Scores(name, version=version, model=self.model or model)
        twin._own = {prompt: values.copy() for prompt, values in self._own.items()}
        return twin

    def __len__(self) -> int:
        return sum(map(len, self._own.values()))

    def __repr__(self) -> str:
        return f"Scores({self.reward!r}, {len(self)} of {len(self._own)} prompts)"

    def all(self) -> Floats:
        """Every score, rising, `(len(self),)` float64."""
        return np.sort(np.fromiter((v for own in self._own.values() for v in own), np.float64))

    def by_prompt(self) -> dict[str, Floats]:
        """Every prompt's scores, rising; prompts in alphabetical order.

        Raises:
            ThresholdError: Scores without a prompt.
        """
        named = {name: values for name, values in self._own.items() if name is not None}
        if len(named) != len(self._own):
            raise ThresholdError(
                f"per_prompt=True: {len(self._own[None])} scores have no prompt; "
                "add(scores, prompts) names one for each"
            )
        return {name: np.sort(named[name]) for name in sorted(named)}

    def to_list(self) -> list[list[Any]]:
        """JSON-ready: `[prompt or None, rising scores]` per prompt."""
        names = sorted(self._own, key=lambda name: (name is not None, name or ""))
        return [[name, sorted(self._own[name])] for name in names]


def label(name: str, version: str) -> str:
    """A reward as errors call it: `"'hpsv2.1' version 'c7ab'"`."""
    return f"{name!r} version {version!r}" if version else repr(name)


def collect(scores: Scores | Mapping[str, Numbers] | Numbers) -> Scores:
    """A copy of `Scores`; numbers, or numbers by prompt, in new ones."""
    if isinstance(scores, Scores):
        return scores.copy()
    found = Scores()
    if isinstance(scores, Mapping):
        for prompt, values in scores.items():
            found.add(values, prompt)
        return found
    return found.add(scores)


def as_floats(scores: Numbers) -> Floats:
    """Any shape of finite numbers as `(count,)` float64; ThresholdError for others."""
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().double().numpy()
    try:
        values = np.asarray(scores, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ThresholdError(f"scores={scores!r}: must be numbers ({error})") from error
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ThresholdError(
            f"scores: number {bad[0]} of {len(values)} is {values[bad[0]]}; scores must be finite"
        )
    return values
