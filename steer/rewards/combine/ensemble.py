"""Rewards on one scale by comparing the candidates of a prompt: by ranks, or by z-scores.

What they are worth against over-optimisation is the independence of their parts' failures.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.core.checks import positive
from steer.rewards.base import Composite
from steer.rewards.inputs import Images
from steer.rewards.parts import Parts, rows_by_group
from steer.rewards.text import Kind, write_mixture
from steer.rewards.weights import Term, name_terms


Floats: TypeAlias = NDArray[np.float64]

NOISE = 2.0**-20
"""Scores that differ by less than this share of their size differ by rounding: they are equal."""


class Ensemble(Composite):
    """Parts that are brought to a common scale within each prompt's candidates, then weighed.

    Scores are relative: they compare candidates of one prompt with each other and are not
    differentiable. A candidate with a non-finite score stays NaN, the others are compared
    without it.

    Args:
        terms: `(reward, weight)` pairs; a part of negative weight counts against, one of weight
            zero is only reported.
        names: How the parts are called in `parts`; default their own names.

    Raises:
        ValueError: No parts, a weight that is not a finite number, or none but zeros.
    """

    relative = True
    differentiable = False
    kind: ClassVar[Kind]

    def __init__(self, terms: Sequence[Term], names: Sequence[str] | None = None) -> None:
        self.rewards, self.weights = name_terms(terms, names)
        if not any(self.weights.values()):
            raise ValueError(f"{self.kind} of weights {self.weights}: one must not be zero")
        self.name = write_mixture(self.kind, self.weights)
        self.needs_prompt = any(r.needs_prompt for n, r in self.rewards.items() if self.weights[n])

    def parts(self, images: Images, prompts: str | Sequence[str]) -> Parts:
        """Every part's own, unweighted scores `(B,)`, by name; without gradient."""
        with torch.no_grad():
            return super().parts(images, prompts)

    def combine(
        self, parts: Mapping[str, Tensor], groups: Sequence[Hashable] | None = None
    ) -> Tensor:
        """Compare within each group, and weigh; `(B,)` float32."""
        example = next(iter(parts.values()))
        together = rows_by_group(groups, len(example))
        weights = {name: weight for name, weight in self.weights.items() if weight}
        scaled = []
        for name, weight in weights.items():
            scores = self.score_part(name, parts, groups).detach().double().cpu().numpy()
            scaled.append(self._scaled(np.sign(weight) * scores, together))
        sizes = np.abs(np.array(list(weights.values())))
        total = self.join(np.array(scaled), sizes)
        return torch.from_numpy(total).to(example.device, torch.float32)

    def _scaled(self, scores: Floats, groups: Sequence[NDArray[np.intp]]) -> Floats:
        """One part's scores on the common scale; NaN where they are not finite."""
        found = np.full(len(scores), np.nan)
        for rows in groups:
            rows = rows[np.isfinite(scores[rows])]
            if len(rows):
                found[rows] = self.scale(scores[rows])
        return found

    @abstractmethod
    def join(self, scaled: Floats, weights: Floats) -> Floats:
        """Parts `(parts, B)` on the common scale, of positive weights `(parts,)`, as one score."""

    @staticmethod
    @abstractmethod
    def scale(scores: Floats) -> Floats:
        """Finite scores of one group, at least one, on the common scale."""


class RankEnsemble(Ensemble):
    """Weighted mean of per-prompt ranks, in [0, 1]: 1 is best under every part, 0 worst.

    Ranks know no scale, so no part can drown the others and no outlier counts for more than its
    place: the verifier ensemble of Ma et al. 2025 (arXiv:2501.09732). Equal scores share the mean
    of their ranks; a single candidate gets 0.5.
    """

    kind = "rank"
    range = (0.0, 1.0)

    def join(self, scaled: Floats, weights: Floats) -> Floats:
        """The weighted mean of the ranks."""
        return _weighted_sum(scaled, weights, sum(weights.tolist()))

    @staticmethod
    def scale(scores: Floats) -> Floats:
        """Mean ranks from 0 (worst) to 1 (best)."""
        from scipy.stats import rankdata  # slow to import

        if len(scores) == 1:
            return np.array([0.5])
        order = np.argsort(scores, kind="stable")
        ascending = scores[order]
        size = np.maximum(np.abs(ascending[1:]), np.abs(ascending[:-1]))
        level = np.zeros(len(scores))
        level[order[1:]] = np.cumsum(np.diff(ascending) > NOISE * size)
        return (rankdata(level) - 1) / (len(scores) - 1)


class WorstRank(RankEnsemble):
    """The smallest of the per-prompt ranks, in [0, 1]: good is what every part calls good.

    A candidate that fools one part has the rank that the others give it. Ranks as in
    `RankEnsemble`; weights only say which parts count, and which count against.
    """

    kind = "worst"

    def join(self, scaled: Floats, weights: Floats) -> Floats:
        """The smallest rank."""
        return scaled.min(0)


class Standardised(Ensemble):
    """Weighted sum of per-prompt z-scores: `(score - mean) / std` over a prompt's candidates.

    Weights are then in units of each part's own spread. The standard deviation is that of the
    candidates themselves (division by n). Equal scores, and a single candidate, get 0.
    """

    kind = "standardise"

    def join(self, scaled: Floats, weights: Floats) -> Floats:
        """The weighted sum of the z-scores."""
        return _weighted_sum(scaled, weights)

    @staticmethod
    def scale(scores: Floats) -> Floats:
        """Mean 0, standard deviation 1; zeros where there is no spread."""
        spread = scores.std()
        if spread <= NOISE * np.abs(scores).max():
            return np.zeros(len(scores))
        return (scores - scores.mean()) / spread


class LowerBound(Standardised):
    """A lower confidence bound: weighted mean of the z-scores minus `kappa` times their deviation.

    Where the parts disagree about a candidate, at least one is wrong, and nobody knows which. Both
    are taken over the parts, by their weights; with equal weights the deviation of two parts is
    half their difference, so that `kappa=1` is the smaller of the two.

    Args:
        terms, names: As for `Ensemble`.
        kappa: Weight of the deviation, at least 0.

    Raises:
        ValueError: As `Ensemble`, or `kappa` is no finite number of at least 0.
    """

    kind = "bound"

    def __init__(
        self, terms: Sequence[Term], names: Sequence[str] | None = None, *, kappa: float = 1.0
    ) -> None:
        super().__init__(terms, names)
        positive("kappa", kappa, zero=True, none=False)
        self.kappa = kappa

    def join(self, scaled: Floats, weights: Floats) -> Floats:
        """Mean minus `kappa` deviations."""
        shares = weights / weights.sum()
        mean = _weighted_sum(scaled, shares)
        return mean - self.kappa * np.sqrt(_weighted_sum(np.square(scaled - mean), shares))


def _weighted_sum(scaled: Floats, weights: Floats, norm: float = 1.0) -> Floats:
    """Over the parts, one after the other, as many as there are."""
    total = np.zeros(scaled.shape[1])
    for part, weight in zip(scaled, weights, strict=True):
        total += weight * part / norm
    return total
