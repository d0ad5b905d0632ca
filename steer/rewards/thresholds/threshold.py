"""One threshold for gating at inference and for labels in training."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import ThresholdError
from steer.core.files.atomic import write_json
from steer.core.files.versions import versions
from steer.core.types import Reward
from steer.rewards.parts import identity
from steer.rewards.thresholds.files import read_object
from steer.rewards.thresholds.levels import Rule, check_rule, find_level, subtract_levels
from steer.rewards.thresholds.scores import Floats, Numbers, Scores, collect, label


Prompts: TypeAlias = str | Sequence[str] | None
_FORMAT = "steer-threshold/1"
_EXAMPLE = "Threshold.fit(scores, quantile=0.5, reward=reward)"


@dataclass(frozen=True, repr=False)
class Threshold:
    """A level `tau` that rewards are held against, and how it was found.

    Threshold-guided optimisation (arXiv:2605.04653) splits samples at a percentile of the untuned
    model's scores: label 1[r >= tau], weight 1 + c |r - tau|. The same rule tells a search when to
    stop. The paper's one tau for all prompts stands in for the exact tau*(x) = beta log Z(x); with
    a few untuned samples per prompt, tau(x) can be had by prompt (`per_prompt=True`).

    Usually made by `Threshold.fit` or `Threshold.load`; `Threshold(0.31)` is a bare number.

    Args:
        tau: The level over all prompts.
        spread: Standard deviation of the fitted scores, the unit of `confidence`; with levels per
            prompt, of the scores about their prompt's mean.
        reward, version: What the scores are of; empty where unknown, which is then not checked.
        model: What made the images.
        rule: How the level follows from the scores: their `"quantile"`, their `"mean"`, or the
            Monte-Carlo baseline `"log-mean-exp"`, beta log mean exp(r / beta).
        quantile: Of the rule `"quantile"`, with linear interpolation as in numpy.
        beta: Of the rule `"log-mean-exp"`, in the reward's own units.
        count: How many scores.
        prompts: Level by prompt; empty for one level for all.
        unknown: What a prompt without a level of its own gets: an error (`"raise"`) or `tau`
            (`"global"`).
        steer: The version that fitted it.
        scores: What it was fitted on, for `merge`; not part of its repr or equality.

    Raises:
        ThresholdError: Values out of range.
    """

    tau: float
    _: KW_ONLY
    spread: float = 0.0
    reward: str = ""
    version: str = ""
    model: str = ""
    rule: Rule = "quantile"
    quantile: float | None = None
    beta: float | None = None
    count: int = 0
    prompts: Mapping[str, float] = field(default_factory=dict, hash=False)
    unknown: Literal["raise", "global"] = "raise"
    steer: str = field(default="", compare=False)
    scores: Scores | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.prompts, Mapping):
            raise ThresholdError(f"prompts={self.prompts!r}: must be levels by prompt")
        for name, value in {"tau": self.tau, "spread": self.spread, **self.prompts}.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ThresholdError(f"{name}={value!r}: must be a number; write {_EXAMPLE}")
            if not math.isfinite(value) or (name == "spread" and value < 0):
                raise ThresholdError(f"{name}={value!r}: must be finite; write {_EXAMPLE}")
        check_rule(self.rule, self.quantile, self.beta)
        if self.unknown not in ("raise", "global"):
            raise ThresholdError(f"unknown={self.unknown!r}: must be 'raise' or 'global'")

    @classmethod
    def fit(
        cls,
        scores: Scores | Mapping[str, Numbers] | Numbers,
        quantile: float | None = None,
        per_prompt: bool = False,
        *,
        reward: str | Reward = "",
        model: str = "",
        rule: Rule = "quantile",
        beta: float | None = None,
        unknown: Literal["raise", "global"] = "raise",
    ) -> Threshold:
        """The level that `rule` finds in scores of untuned samples.

        Args:
            scores: Numbers of any shape; or `{prompt: numbers}`; or `Scores`, filled bit by bit.
            quantile: Of the scores, in [0, 1]; default the median.
            per_prompt: Also a level for every prompt, from its own scores.
            reward: What the scores are of (the reward itself, so that its version is known).
            model: What made the images.
            rule, beta, unknown: See the class.

        Raises:
            ThresholdError: No scores, scores that are not finite or have no prompt where
                `per_prompt` needs them, a rule's parameter missing or out of range, a `reward`
                that is not the one that `scores` name.
        """
        found = collect(scores)
        if quantile is None and rule == "quantile":
            quantile = 0.5
        check_rule(rule, quantile, beta)
        if not len(found):
            raise ThresholdError(f"scores: none; a threshold needs at least one, as in {_EXAMPLE}")
        found = found.copy(reward, model)
        everything = found.all()
        by_prompt = found.by_prompt() if per_prompt else {}
        groups = list(by_prompt.values()) or [everything]
        squares = sum(float(((own - own.mean()) ** 2).sum()) for own in groups)
        return cls(
            find_level(everything, rule, quantile, beta),
            spread=math.sqrt(squares / len(everything)),
            reward=found.reward,
            version=found.version,
            model=found.model,
            rule=rule,
            quantile=quantile,
            beta=beta,
            count=len(everything),
            prompts={p: find_level(own, rule, quantile, beta) for p, own in by_prompt.items()},
            unknown=unknown,
            steer=_version(),
            scores=found,
        )

    def merge(self, other: Threshold) -> Threshold:
        """The threshold of both sets of scores together, as if fitted on them at once.

        Raises:
            ThresholdError: One has no scores, or rules, rewards, versions or models differ.
        """
        if self.scores is None or other.scores is None:
            raise ThresholdError("merge: a threshold without its scores; use Threshold.fit or load")
        if self._settings() != other._settings():
            raise ThresholdError(
                f"merge: fitted differently, {self._settings()} and {other._settings()}"
            )
        return Threshold.fit(self.scores.merge(other.scores), **self._settings())

    def at(self, prompt: str | None = None) -> float:
        """The level for a prompt.

        Raises:
            ThresholdError: Levels are by prompt, and this one has none or was not named.
        """
        if not self.prompts:
            return float(self.tau)
        if prompt is not None and prompt in self.prompts:
            return float(self.prompts[prompt])
        if self.unknown == "global":
            return float(self.tau)
        raise ThresholdError(
            f"prompt={prompt!r}: the threshold has levels for {len(self.prompts)} prompts and none "
            "for this one; fit it with samples of this prompt, or with unknown='global'"
        )

    @overload
    def margin(self, r: Tensor, prompt: Prompts = None) -> Tensor: ...
    @overload
    def margin(self, r: float, prompt: Prompts = None) -> float: ...
    @overload
    def margin(self, r: Sequence[float] | NDArray[Any], prompt: Prompts = None) -> NDArray[Any]: ...
    def margin(self, r: Any, prompt: Prompts = None) -> Any:
        """`r - tau`, in float64 (float32 on devices without it).

        Args:
            r: Rewards: a number, a tensor, or an array or list of them, of any shape.
            prompt: Whose they are, where levels are by prompt: one text for all, or one per entry
                of the first dimension.

        Returns:
            As `r`: a number, a tensor on its device, or an array.
        """
        return subtract_levels(r, self._levels(prompt))

    def accept(self, r: Any, prompt: Prompts = None) -> Any:
        """Whether rewards reach the level, `r >= tau`: a bool, a bool tensor or a bool array.

        NaN is not accepted. Arguments as in `margin`.
        """
        return self.margin(r, prompt) >= 0

    def label(self, r: Any, prompt: Prompts = None) -> Any:
        """1 where `r >= tau` (ties are positive), else 0: a float, a float32 tensor or array."""
        accepted = self.accept(r, prompt)
        if isinstance(accepted, Tensor):
            return accepted.float()
        return accepted.astype(np.float32) if isinstance(accepted, np.ndarray) else float(accepted)

    def confidence(self, r: Any, prompt: Prompts = None, *, c: float = 5.0) -> Any:
        """`1 + c |r - tau| / spread`: how far from the level rewards are, as a training weight.

        The paper's weight 1 + c |r - tau| with c = 5 is in the reward's raw units: about 1.1 on
        HPS cosines (spread 0.02), about 5 on ImageReward (spread 1). Here c counts spreads, so that
        one value means the same for every reward; `c=5 * threshold.spread` is the paper's weight.

        Returns:
            A number, a float32 tensor or an array, as `r`.

        Raises:
            ThresholdError: A negative `c`, or the spread is 0 or unknown.
        """
        if not c >= 0:
            raise ThresholdError(f"c={c!r}: must be a number of at least 0, such as 5")
        if self.spread == 0:
            raise ThresholdError(
                "confidence needs the scores' spread, which is 0 here: fit the threshold on scores "
                "that differ (with per_prompt=True, on several per prompt)"
            )
        distance = 1 + c * abs(self.margin(r, prompt)) / self.spread
        return distance.float() if isinstance(distance, Tensor) else distance

    def check(self, reward: Reward) -> None:
        """Refuse another reward than the one whose scores were fitted, or another version of it.

        Names and versions that either side leaves empty are not compared.

        Raises:
            ThresholdError: They differ; both are named.
        """
        self.check_name(*identity(reward))

    def check_name(self, name: str, version: str = "") -> None:
        """`check` by name and version."""
        other = self.version and version and self.version != version
        if self.reward and name and (self.reward != name or other):
            raise ThresholdError(
                f"threshold={self.tau:.6g} was fitted on reward {label(self.reward, self.version)}"
                f", and the reward in use is {label(name, version)}: scores of different rewards "
                f"do not compare; fit a threshold on scores of {name!r}, or use {self.reward!r}"
            )

    def to_dict(self, scores: bool = True) -> dict[str, Any]:
        """JSON-ready, with or without the scores it was fitted on."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scores"}
        kept = self.scores.to_list() if scores and self.scores is not None else None
        return {"format": _FORMAT, **known, "prompts": dict(self.prompts), "scores": kept}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Threshold:
        """What `to_dict` gave; ThresholdError for anything else."""
        values = dict(data)
        if values.pop("format", None) != _FORMAT:
            raise ThresholdError(f"not a {_FORMAT} file: write one with Threshold.save")
        rows = values.pop("scores", None)
        try:
            made = cls(**values)
            if rows is None:
                return made
            kept = Scores(made.reward, version=made.version, model=made.model)
            for prompt, own in rows:
                kept.add(own, prompt)
        except (TypeError, ValueError, AttributeError) as error:
            raise ThresholdError(f"a damaged threshold file: {error}") from error
        return cls(**values, scores=kept)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Threshold:
        """Read what `save` wrote; ThresholdError if it cannot be read."""
        return cls.from_dict(read_object(path, "threshold", f"{_EXAMPLE}.save(path)"))

    def __repr__(self) -> str:
        """A call that makes an equal threshold; what has its default value is left out."""
        given = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.compare and f.name != "tau" and getattr(self, f.name) not in (f.default, {})
        ]
        return f"Threshold({', '.join([repr(self.tau), *given])})"

    def _settings(self) -> dict[str, Any]:
        names = ("rule", "quantile", "beta", "unknown")
        return {n: getattr(self, n) for n in names} | {"per_prompt": bool(self.prompts)}

    def _levels(self, prompt: Prompts) -> Floats:
        if not self.prompts or prompt is None or isinstance(prompt, str):
            return np.array(self.at(prompt if isinstance(prompt, str) else None), dtype=np.float64)
        return np.array([self.at(text) for text in prompt], dtype=np.float64)


@functools.cache
def _version() -> str:
    return versions()["steer"]
