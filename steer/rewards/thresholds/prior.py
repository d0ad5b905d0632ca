"""What rewards of a model are like over prompts: learned from pilots, for prompts not seen yet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import gammaln

from steer.core.checks import positive
from steer.core.errors import ThresholdError
from steer.core.files.atomic import write_json
from steer.core.types import Reward
from steer.rewards.parts import identity
from steer.rewards.thresholds.beliefs import Belief
from steer.rewards.thresholds.files import read_object
from steer.rewards.thresholds.outlook import NormalScores, Outlook, upper_half
from steer.rewards.thresholds.scores import Floats, Numbers, Scores, collect, label


_FORMAT = "steer-prior/1"
_EXAMPLE = "Prior.fit(pilots.scores()), of pilots with several images per prompt"
_GUESS = np.log([1.0, 2.0])  # of weight and freedom - 2, where prompts say little about them
_WIDTH = np.array([1.5, 1.0])
_KNOTS = 9  # quantiles that a map to normal scores goes through
_START = np.array([0.0, 0.0, *_GUESS])


@dataclass(frozen=True)
class Prior:
    """How a prompt's rewards are distributed, before any of them is seen.

    Prompts differ in their mean and in their standard deviation; within one, rewards (or their
    normal scores) are taken for Gaussian, by their upper half. `variance ~ InvGamma`, of mean
    `sd^2`; `mean ~ N(mean, variance / weight)`.

    Args:
        mean: Of all prompts' means.
        sd: Pooled standard deviation within prompts, above 0.
        weight: How many candidates of a prompt the knowledge of its mean is worth, above 0.
        freedom: Degrees of freedom of the first candidate's t distribution, above 2; the larger,
            the more alike the prompts' standard deviations are.
        knots: Rewards at evenly spaced quantiles of all prompts together, rising, at least two:
            `mean` and `sd` are then of normal scores (`NormalScores`). Empty for rewards as they
            are.
        spread: The pooled standard deviation in the reward's own units; `sd` without knots.
        reward, version: What scored; empty where unknown, which is then not checked.
        model: What made the images.

    Raises:
        ValueError: Numbers out of range.
    """

    mean: float
    sd: float
    weight: float = 1.0
    freedom: float = 4.0
    knots: tuple[float, ...] = ()
    spread: float | None = None
    reward: str = ""
    version: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if not (_is_number(self.mean) and math.isfinite(self.mean)):
            raise ValueError(f"mean={self.mean!r}: must be a finite number; use {_EXAMPLE}")
        for name in ("sd", "weight", "freedom"):
            positive(name, getattr(self, name), none=False)
        if self.freedom <= 2:
            raise ValueError(f"freedom={self.freedom!r}: must be above 2, where sd exists")
        self._check_knots()

    def _check_knots(self) -> None:
        object.__setattr__(self, "knots", tuple(self.knots))
        rising = all(map(_is_number, self.knots)) and all(a < b for a, b in pairwise(self.knots))
        if not rising or len(self.knots) == 1:
            raise ValueError(f"knots={self.knots!r}: must be rising rewards, or none")
        positive("spread", self.spread)
        if bool(self.knots) != (self.spread is not None):
            raise ValueError(
                f"knots={self.knots!r}, spread={self.spread!r}: give both or neither, since sd is "
                "in the reward's own units only without knots"
            )

    @property
    def outlook(self) -> Outlook:
        """The same as an outlook on a prompt of which nothing was seen."""
        shape = self.freedom / 2
        belief = Belief(self.mean, self.weight, shape, self.sd**2 * (shape - 1))
        return Outlook(belief, NormalScores(self.knots))

    @property
    def unit(self) -> float:
        """The pooled standard deviation in the reward's own units."""
        return self.sd if self.spread is None else self.spread

    @classmethod
    def fit(
        cls,
        scores: Scores | Mapping[str, Numbers],
        *,
        reward: str | Reward = "",
        model: str = "",
    ) -> Prior:
        """The prior under which these scores are most likely (empirical Bayes).

        Rewards become normal scores by the quantiles of all prompts together; of every prompt's
        scores the upper half counts, and its mirror image. The fit maximises the marginal
        likelihood of the normal-inverse-gamma law; `weight` and `freedom` have weak log-normal
        hyperpriors, so that few prompts do as well.

        Args:
            scores: By prompt, of plain images: some 20 prompts with 4 or more each say enough.
                `Pilots.scores()` of pilots whose prompts stand there several times; also the
                `scores` of a `Threshold`.
            reward, model: What scored and what drew, if `scores` do not know.

        Raises:
            ThresholdError: No prompt with two scores or more, or all equal within every prompt.
        """
        found = collect(scores).copy(reward, model)
        groups = list(found.by_prompt().values())
        unit = pooled_sd(groups)
        if not unit > 0:
            what = "no prompt has two of them" if unit != unit else "equal within every prompt"
            raise ThresholdError(f"scores: {what}; use {_EXAMPLE}")
        scale = NormalScores.fit(found.all(), _KNOTS)
        scored = [upper_half(scale.of(own)) for own in groups]
        return cls(
            *most_likely(scored),
            knots=scale.knots,
            spread=unit if scale.knots else None,
            reward=found.reward,
            version=found.version,
            model=found.model,
        )

    def check(self, reward: Reward) -> None:
        """Refuse another reward than the one whose scores were fitted, or another version of it.

        Raises:
            ThresholdError: They differ; both are named.
        """
        name, version = identity(reward)
        other = self.version and version and self.version != version
        if self.reward and name and (self.reward != name or other):
            raise ThresholdError(
                f"prior of reward {label(self.reward, self.version)}, and the reward in use is "
                f"{label(name, version)}: fit a prior on scores of {name!r}"
            )

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(Path(path), {"format": _FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Prior:
        """Read what `save` wrote; ThresholdError if it cannot be read."""
        data = dict(read_object(path, "prior", "Prior.fit(scores).save(path)"))
        if data.pop("format", None) != _FORMAT:
            raise ThresholdError(f"prior={str(path)!r}: not a {_FORMAT} file; see Prior.save")
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise ThresholdError(f"prior={str(path)!r}: a damaged file ({error})") from error


def pooled_sd(groups: Sequence[Floats]) -> float:
    """Standard deviation about the groups' own medians, of their upper halves.

    That of Gaussians is the usual one. NaN where no group has two values.
    """
    halves = [upper_half(own) for own in groups if len(own)]
    squares = sum(float(((own - own.mean()) ** 2).sum()) for own in halves)
    freedom = sum(len(own) - 1 for own in halves)
    return math.sqrt(squares / freedom) if freedom else math.nan


def most_likely(groups: Sequence[Floats]) -> tuple[float, float, float, float]:
    """Mean, sd, weight and freedom of values in groups, as `Prior.fit` finds them.

    Computed in units of their spread, which must not be 0: some group has two values that differ.
    """
    counts = np.array([len(own) for own in groups], dtype=np.float64)
    means = np.array([own.mean() for own in groups])
    squares = np.array([((own - own.mean()) ** 2).sum() for own in groups])
    origin, unit = float(means.mean()), math.sqrt(squares.sum() / (counts - 1).sum())
    squares, where = squares / unit**2, (means - origin) / unit

    def loss(free: Any) -> float:
        mean, log_sd, log_weight, log_more = (float(v) for v in free)
        weight, shape = math.exp(log_weight), 1 + math.exp(log_more) / 2
        scale = math.exp(2 * log_sd) * (shape - 1)
        last = shape + counts / 2
        between = weight * counts / (weight + counts) * (where - mean) ** 2
        likely = (
            gammaln(last)
            - gammaln(shape)
            + shape * math.log(scale)
            - last * np.log(scale + (squares + between) / 2)
            + 0.5 * np.log(weight / (weight + counts))
        )
        hyper = (np.array([log_weight, log_more]) - _GUESS) / _WIDTH
        return float((hyper**2).sum() / 2 - likely.sum())

    bounds = [(None, None), (-6, 6), (-9, 9), (-6, 9)]
    mean, log_sd, log_weight, log_more = minimize(
        loss, _START, method="L-BFGS-B", bounds=bounds
    ).x.tolist()
    sd, weight = math.exp(log_sd) * unit, math.exp(log_weight)
    return origin + mean * unit, sd, weight, 2 + math.exp(log_more)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
