"""What a pick is: rewards of one prompt's candidates to the rows that are chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steer.core.divergence import kl_of_best, kl_of_choice


Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Finished candidates of one prompt, at least one; those without a score are not among them.

    Attributes:
        rewards: `(n,)`, finite; higher is better.
        uniforms: `(n,)` in (0, 1), one number per candidate from the call's seed and its own name:
            a pick that draws takes them, so that it draws the same whatever else there is.
        features: `(n, d)` of what `Pick.look` made, or `None` where it makes nothing.
    """

    rewards: Floats
    uniforms: Floats
    features: Floats | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    def standardised(self) -> Floats:
        """Rewards with mean 0 and standard deviation 1; zeros where they are all equal."""
        return standardise(self.rewards)


class Pick(ABC):
    """A rule that chooses some of a prompt's candidates. A pick is a frozen dataclass.

    Candidates that a safety checker flagged or whose images are NaN are kept from it: they are
    returned where nothing else is left.

    Attributes:
        looks: Whether `look` has to see every candidate's image.
    """

    looks: bool = False

    @abstractmethod
    def choose(self, candidates: Candidates, count: int) -> list[int]:
        """The chosen rows.

        Args:
            candidates: More than `count` of them.
            count: How many, at least 1.

        Returns:
            `count` different rows, in the order in which they are returned: ours give the highest
            reward first.
        """

    def kl(self, candidates: Candidates, count: int) -> float:
        """How far this choice moves the sampler: KL per chosen one in nats, an upper estimate.

        By default the bound for any rule on as many candidates.
        """
        n = len(candidates)
        return kl_of_best(n) if count == 1 else kl_of_choice(n, count)

    def look(self, images: Tensor) -> Tensor | None:
        """Features `(B, d)` of images `(B, 3, H, W)` or videos `(B, F, 3, H, W)` in [0, 1]."""
        return None


def standardise(values: Floats) -> Floats:
    """Mean 0 and standard deviation 1; zeros where the values differ by no more than rounding."""
    spread = values.std()
    if spread <= 1e-9 * np.abs(values).max(initial=0.0):
        return np.zeros(len(values))
    return (values - values.mean()) / spread


def best_first(rewards: Floats, rows: Sequence[int] | None = None) -> list[int]:
    """Rows by falling reward; ties go to the earlier row."""
    everyone = range(len(rewards)) if rows is None else sorted(rows)
    return sorted(everyone, key=lambda row: -rewards[row])


def check_pick(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a pick."""
    if not isinstance(value, Pick):
        raise ValueError(
            f"{name}={value!r}: must be a pick, such as steer.picks.Quantile(n_eff=8) or "
            "steer.picks.Diverse(); one of your own has steer.picks.Pick as its base class"
        )
