"""Which previews show that a particle cannot clear a threshold: cuts with a conformal guarantee."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steer.core.errors import ThresholdError
from steer.core.files.atomic import write_json
from steer.core.types import Reward, Step
from steer.rewards.thresholds.files import read_object
from steer.rewards.thresholds.pilots import Pilots
from steer.rewards.thresholds.scores import Floats
from steer.rewards.thresholds.threshold import Threshold


_FORMAT = "steer-calibration/1"
_EXAMPLE = "steer.calibrate_gate(guided, prompts, threshold=0.6, at=(0.5, 0.65), alpha=0.1)"
_HAIR = 1e-9  # in score units: rounding never drops the pilot that sets the cut


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Cuts on previews that wrongly drop at most a share `alpha` of what would be accepted.

    A particle is dropped at step k when its preview's margin `v_k - tau` is below the step's cut.

    **The score.** Every step gets a line from preview margin to final margin, by least squares on
    the *rejected* pilots; `z_k = (predicted final margin) / (spread of its error)` says by how many
    standard errors the preview clears the threshold, and puts all steps on one scale: a step whose
    previews know little has a flat line and drops little. One scalar is calibrated, S = min_k z_k,
    so the rate over all steps together is bounded, without a share of alpha for each (Bonferroni).
    Its cut q is the floor(alpha (n + 1))-th smallest S of the n accepted pilots.

    **The guarantee.** P(dropped at any step | would be accepted) <= alpha, in finite samples,
    whatever the distribution. Proof: the lines and tau do not depend on the accepted pilots'
    previews, so given acceptance S_1, ..., S_n and a new S are exchangeable; S < q makes the new
    one rank among the j = floor(alpha (n + 1)) lowest of n + 1, which has probability at most
    j / (n + 1) <= alpha (split-conformal; Vovk, Gammerman & Shafer 2005). It takes
    n >= ceil(1 / alpha) - 1.

    **What it rests on.** Pilots and later particles must be exchangeable: prompts from the same
    distribution, one pilot per prompt (particles of one prompt are alike, and would count as more
    evidence than they are), the same pipeline, sampler and settings, and a tau that does not come
    from the pilots themselves. The rate is an average over prompts and calibrations, not a
    promise for each prompt.

    Attributes:
        threshold: Which final rewards are accepted.
        alpha: Bound on the wrongly-dropped rate.
        steps: Indices of the steps with a cut, rising.
        cuts: Lowest margin `v_k - tau` that goes on, per step.
        count, noise: Of the runs it is valid for, see `Pilots`.
        accepted, pilots: How many pilots were accepted, of how many.
        dropped: Share of the rejected pilots that are gone after each step: what it saves.
    """

    threshold: Threshold
    alpha: float
    steps: tuple[int, ...]
    cuts: tuple[float, ...]
    count: int
    noise: tuple[float, ...]
    accepted: int
    pilots: int
    dropped: tuple[float, ...] = ()

    @classmethod
    def fit(
        cls, pilots: Pilots, threshold: Threshold | float | str | Path, alpha: float = 0.1
    ) -> Calibration:
        """Cuts from pilot runs.

        Args:
            pilots: Runs that `threshold` was not fitted on.
            threshold: A reward, a `Threshold` of the pilots' reward, or the path of one.
            alpha: Bound on the wrongly-dropped rate, in (0, 1).

        Raises:
            ThresholdError: Fewer accepted pilots than `alpha` needs (the message says how many), a
                threshold of another reward, too few rejected pilots to weigh several steps, or no
                step whose previews rise with the final reward.
        """
        needed = pilots_needed(alpha)
        level = _as_threshold(threshold, pilots)
        taus = np.array([level.at(prompt) for prompt in pilots.prompts])
        finals, previews = pilots.finals - taus, pilots.previews - taus[:, None]
        good = finals >= 0
        n = int(good.sum())
        if n < needed:
            raise ThresholdError(
                f"alpha={alpha:g} needs {needed} accepted pilots, and {n} of {len(pilots)} reach "
                f"the threshold {level.tau:.6g}: run more pilots, or raise alpha"
            )
        kept, lines = _fit_lines(previews[~good], finals[~good])
        z = lines.z_scores(previews[:, kept])
        q = np.sort(z[good].min(1))[math.floor(alpha * (n + 1) + 1e-9) - 1] - _HAIR
        gone = np.logical_or.accumulate(z[~good] < q, axis=1)
        return cls(
            threshold=level,
            alpha=float(alpha),
            steps=tuple(pilots.steps[k] for k in kept),
            cuts=tuple(lines.margins(q).tolist()),
            count=pilots.count,
            noise=tuple(float(pilots.noise[k]) for k in kept),
            accepted=n,
            pilots=len(pilots),
            dropped=tuple(np.round(gone.mean(0), 4).tolist()) if len(gone) else (0.0,) * len(kept),
        )

    def check(self, reward: Reward, schedule: Sequence[Step], prompts: Sequence[str] = ()) -> None:
        """Refuse a run that the guarantee does not cover.

        Raises:
            ThresholdError: Another reward or version, another number of steps, other noise levels,
                or a prompt without a level where levels are by prompt.
        """
        self.threshold.check(reward)
        if len(schedule) != self.count:
            raise ThresholdError(
                f"calibration: made with {self.count} denoiser calls, and this run makes "
                f"{len(schedule)}; set the steps back, or calibrate again"
            )
        for k, level in zip(self.steps, self.noise, strict=True):
            if abs(schedule[k].noise_share - level) > 1e-3:
                raise ThresholdError(
                    f"calibration: made at a noise share of {level:.4f} at step {k}, and this run "
                    f"has {schedule[k].noise_share:.4f} there (another scheduler or schedule); "
                    "calibrate again"
                )
        for prompt in prompts:
            self.threshold.at(prompt)

    def drops(self, step: int, previews: Sequence[float], prompts: Sequence[str]) -> list[bool]:
        """Whether each particle is dropped at a step: its preview's margin is below the cut.

        Args:
            step: Index of a step in `steps`.
            previews: Rewards of the x0 previews.
            prompts: Of the particles, one each.

        Raises:
            ValueError: `step` has no cut.
        """
        cut = self.cuts[self.steps.index(step)]
        return (self.threshold.margin(previews, prompts) < cut).tolist()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the threshold without its scores."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"format": _FORMAT, **values, "threshold": self.threshold.to_dict(scores=False)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """What `to_dict` gave; ThresholdError for anything else."""
        values = dict(data)
        if values.pop("format", None) != _FORMAT:
            raise ThresholdError(f"not a {_FORMAT} file: write one with {_EXAMPLE}.save(path)")
        try:
            values["threshold"] = Threshold.from_dict(values["threshold"])
            for name in ("steps", "cuts", "noise", "dropped"):
                values[name] = tuple(values[name])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ThresholdError(f"a damaged calibration file: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote; ThresholdError if it cannot be read."""
        return cls.from_dict(read_object(path, "calibration", f"{_EXAMPLE}.save(path)"))


def pilots_needed(alpha: float) -> int:
    """Accepted pilots that a wrongly-dropped rate of `alpha` needs: `ceil(1 / alpha) - 1`.

    Raises:
        ThresholdError: `alpha` is not in (0, 1).
    """
    if not isinstance(alpha, int | float) or not 0 < alpha < 1:
        raise ThresholdError(f"alpha={alpha!r}: must be a rate between 0 and 1, such as 0.1")
    return math.ceil(1 / alpha - 1e-9) - 1


class _Lines(NamedTuple):
    """One line per step from preview margin to final margin, `(steps,)` float64 each."""

    intercept: Floats
    slope: Floats
    error: Floats

    def z_scores(self, previews: Floats) -> Floats:
        """Standard errors by which preview margins `(pilots, steps)` predict acceptance."""
        return (self.intercept + self.slope * previews) / self.error

    def margins(self, z: float) -> Floats:
        """The preview margins whose z-score is `z`, `(steps,)`."""
        return (z * self.error - self.intercept) / self.slope


def _fit_lines(previews: Floats, finals: Floats) -> tuple[list[int], _Lines]:
    """Steps whose previews rise with the final reward, by column, and their lines.

    One step needs no scale to share, so its score is the margin itself.
    """
    count = previews.shape[1]
    if count == 1:
        return [0], _Lines(np.zeros(1), np.ones(1), np.ones(1))
    if len(finals) < 3:
        raise ThresholdError(
            f"{len(finals)} pilots are rejected, and weighing {count} steps against each other "
            "takes at least 3: run more pilots, raise the threshold, or use one step"
        )
    x, y = previews - previews.mean(0), finals - finals.mean()
    square = (x * x).sum(0)
    slope = (x * y[:, None]).sum(0) / np.where(square > 0, square, 1.0)
    kept = np.flatnonzero(slope > 0)
    if not len(kept):
        raise ThresholdError(
            "at none of the steps do previews rise with the final reward: take later steps"
        )
    slope = slope[kept]
    rest = y[:, None] - slope * x[:, kept]
    error = np.maximum(np.sqrt((rest * rest).mean(0)), 1e-6 * np.sqrt((y * y).mean()))
    intercept = finals.mean() - slope * previews[:, kept].mean(0)
    return kept.tolist(), _Lines(intercept, slope, error)


def _as_threshold(threshold: Threshold | float | str | Path, pilots: Pilots) -> Threshold:
    if isinstance(threshold, str | Path):
        threshold = Threshold.load(threshold)
    if not isinstance(threshold, Threshold):
        return Threshold(threshold, reward=pilots.reward, version=pilots.version)
    threshold.check_name(pilots.reward, pilots.version)
    return threshold
