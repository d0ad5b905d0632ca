"""One scale for rewards and prompts: z-scores or percentiles of a prompt's own plain images."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from steer.core.errors import ThresholdError
from steer.core.files.atomic import write_json
from steer.core.types import Reward
from steer.rewards.parts import identity
from steer.rewards.thresholds.beliefs import Belief
from steer.rewards.thresholds.files import read_object
from steer.rewards.thresholds.prior import most_likely
from steer.rewards.thresholds.scores import Floats, Numbers, Scores, collect, label


Unit: TypeAlias = Literal["z", "percentile"]
_FORMAT = "steer-scales/1"
_EXAMPLE = "steer.pipeline.fit_scales(guided, prompts).save('scales.json')"


@dataclass(frozen=True)
class Scale:
    """Where a reward's scores of each prompt's plain images lie, and how far they spread.

    With a handful of pilots per prompt a mean and a standard deviation of their own are noisy (five
    leave the deviation 35% uncertain). So all prompts together say how means and deviations differ
    (a normal-inverse-gamma law of greatest likelihood, as in `Prior`), and a prompt's own scores
    update that: few of them are drawn to the others, many stand for themselves.

    Attributes:
        unit: `"z"`: `(r - mean) / sd` of the prompt. `"percentile"`: the probability, in [0, 1],
            that another plain image of the prompt scores less, by the t law that the pilots leave.
        others: What is expected of a prompt without pilots.
        prompts: What is expected of each prompt, by its text.
        unknown: What a prompt without pilots gets: an error (`"raise"`) or `others` (`"global"`).
        reward, version, model: What scored, and what drew; empty where unknown.

    Raises:
        ThresholdError: An unknown unit, or numbers that are no such law.
    """

    unit: Unit
    others: Belief
    prompts: Mapping[str, Belief] = field(default_factory=dict, hash=False)
    unknown: Literal["raise", "global"] = "raise"
    reward: str = ""
    version: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if self.unknown not in ("raise", "global"):
            raise ThresholdError(f"unknown={self.unknown!r}: must be 'raise' or 'global'")
        for prompt, law in {"others": self.others, **self.prompts}.items():
            numbers = (law.centre, law.weight, law.shape, law.scale)
            fits = all(isinstance(v, int | float) and math.isfinite(v) for v in numbers)
            if not (fits and law.weight > 0 and law.shape > 1 and law.scale > 0):
                raise ThresholdError(f"scale of prompt {prompt!r}: {law} is no law of scores")

    @classmethod
    def fit(
        cls,
        scores: Scores | Mapping[str, Numbers],
        *,
        unit: Unit = "z",
        unknown: Literal["raise", "global"] = "raise",
        reward: str | Reward = "",
        model: str = "",
    ) -> Scale:
        """The scale that plain images' scores support.

        Args:
            scores: By prompt, four or more each for a scale that means much.
            unit, unknown: See the class.
            reward, model: What scored and what drew, if `scores` do not know.

        Raises:
            ThresholdError: No prompt has two scores, or all are equal within every prompt.
        """
        found = collect(scores).copy(reward, model)
        groups = {text: own for text, own in found.by_prompt().items() if len(own)}
        if not any(len(own) > 1 and own[-1] > own[0] for own in groups.values()):
            raise ThresholdError(
                "scores: no prompt has two that differ, so they have no scale; score several plain "
                f"images per prompt, as {_EXAMPLE} does"
            )
        mean, sd, weight, freedom = most_likely(list(groups.values()))
        others = Belief(mean, weight, freedom / 2, sd**2 * (freedom / 2 - 1))
        return cls(
            unit,
            others,
            {text: others.after(own) for text, own in groups.items()},
            unknown,
            found.reward,
            found.version,
            found.model,
        )

    def at(self, prompt: str) -> Belief:
        """The law of a prompt's scores; ThresholdError where it has none and `unknown` raises."""
        if prompt in self.prompts:
            return self.prompts[prompt]
        if self.unknown == "global":
            return self.others
        raise ThresholdError(
            f"prompt={prompt!r}: the scale of {self.reward!r} has {len(self.prompts)} prompts and "
            "not this one; fit it with pilots of this prompt, or with unknown='global'"
        )

    def of(self, scores: Sequence[float] | Floats, prompt: str) -> Floats:
        """Scores of a prompt on the scale, float64."""
        law = self.at(prompt)
        if self.unit == "percentile":
            return law.below(scores)
        return (np.asarray(scores, dtype=np.float64) - law.centre) / law.sd

    def fits(self, reward: Reward) -> bool:
        """Whether it is of this reward; names and versions that one side lacks do not differ."""
        name, version = identity(reward)
        same = not (self.version and version) or self.version == version
        return same and (not self.reward or self.reward == name)

    def check(self, reward: Reward) -> None:
        """Raise ThresholdError unless it is of this reward."""
        if not self.fits(reward):
            raise ThresholdError(
                f"scale of reward {label(self.reward, self.version)}, and the reward in use is "
                f"{label(*identity(reward))}: fit one on its own scores"
            )

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that tell it from others."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class Scales(tuple[Scale, ...]):
    """The scales of several rewards, in one file.

    Args:
        scales: One per reward.
    """

    __slots__ = ()

    def __new__(cls, scales: Iterable[Scale] = ()) -> Scales:
        return super().__new__(cls, scales)

    def of(self, reward: Reward) -> Scale:
        """The scale of a reward.

        Raises:
            ThresholdError: None is of it.
        """
        for scale in self:
            if scale.fits(reward):
                return scale
        have = ", ".join(label(scale.reward, scale.version) for scale in self) or "none"
        raise ThresholdError(
            f"no scale is of reward {label(*identity(reward))}, there are {have}: fit one, as in "
            f"{_EXAMPLE}"
        )

    def save(self, path: str | Path) -> None:
        """Write them as JSON, whole or not at all."""
        write_json(Path(path), {"format": _FORMAT, "scales": [asdict(scale) for scale in self]})

    @classmethod
    def load(cls, path: str | Path) -> Scales:
        """Read what `save` wrote; ThresholdError if it cannot be read."""
        data = read_object(path, "scale", _EXAMPLE)
        if data.get("format") != _FORMAT:
            raise ThresholdError(f"scale={str(path)!r}: not a {_FORMAT} file; see Scales.save")
        try:
            return cls(map(_read, data["scales"]))
        except (KeyError, TypeError, AttributeError, ThresholdError) as error:
            raise ThresholdError(f"scale={str(path)!r}: a damaged file ({error})") from error


def as_scales(given: Scales | Scale | str | Path) -> Scales:
    """Scales, from a file where a path is given."""
    if isinstance(given, Scales):
        return given
    return Scales([given]) if isinstance(given, Scale) else Scales.load(given)


def check_unit(unit: str) -> None:
    """Raise ThresholdError unless a unit is known."""
    if unit not in get_args(Unit):
        raise ThresholdError(f"unit={unit!r}: one of {', '.join(map(repr, get_args(Unit)))}")


def _read(data: Mapping[str, Any]) -> Scale:
    laws = {text: Belief(**law) for text, law in data["prompts"].items()}
    return Scale(**{**data, "others": Belief(**data["others"]), "prompts": laws})
