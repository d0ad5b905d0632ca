"""What a search spends, in counts, and what one of each costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias


Unit: TypeAlias = Literal["flops", "rows"]
"""What `compute` counts: floating-point operations, or denoiser rows alone (as papers do)."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Work:
    """What a method spends per returned image, at most.

    Attributes:
        rows: Latents that the denoiser evaluates.
        backward_rows: Of these, how many are differentiated through the denoiser.
        decodes: Final latents decoded to images, the pipeline's own decode included.
        previews: Predictions of x0 decoded on the way.
        scores: Images scored.
        gradients: Images whose reward is differentiated through reward and decoder.
    """

    rows: int = 0
    backward_rows: int = 0
    decodes: int = 0
    previews: int = 0
    scores: int = 0
    gradients: int = 0

    @classmethod
    def best_of(cls, rows: int, finished: int, previews: int = 0) -> Work:
        """`finished` candidates of which the best is returned, after `previews` on the way.

        A single one is decoded by the pipeline alone; of several, the best is decoded twice.
        """
        again = finished if finished > 1 else 0
        return cls(rows, decodes=again + 1, previews=previews, scores=previews + finished)

    def __add__(self, other: Work) -> Work:
        return Work(
            self.rows + other.rows,
            self.backward_rows + other.backward_rows,
            self.decodes + other.decodes,
            self.previews + other.previews,
            self.scores + other.scores,
            self.gradients + other.gradients,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            self.rows * times,
            self.backward_rows * times,
            self.decodes * times,
            self.previews * times,
            self.scores * times,
            self.gradients * times,
        )

    @property
    def equivalent_rows(self) -> int:
        """Denoiser-row equivalents: a backward pass counts as two rows."""
        return self.rows + 2 * self.backward_rows


@dataclass(frozen=True)
class Costs:
    """What one of each costs, in FLOPs or in denoiser rows.

    Attributes:
        row: One latent through the denoiser, guidance included.
        decode: One final latent to an image (or video).
        preview: One prediction of x0 to an image.
        score: One image (or video) scored.
        row_backward: The backward pass of one row through the denoiser.
        gradient: The backward pass of one image through reward and decoder.
        unit: What the numbers count.
    """

    row: float = 1.0
    decode: float = 0.0
    preview: float = 0.0
    score: float = 0.0
    row_backward: float = 2.0
    gradient: float = 0.0
    unit: Unit = "rows"

    def of(self, work: Work) -> float:
        """What `work` costs."""
        return (
            self.row * work.rows
            + self.row_backward * work.backward_rows
            + self.decode * work.decodes
            + self.preview * work.previews
            + self.score * work.scores
            + self.gradient * work.gradients
        )

    def blended(self, each: int) -> Costs:
        """The same where every row asks `each` denoisers."""
        return replace(self, row=self.row * each, row_backward=self.row_backward * each)

    def plain(self, steps: int) -> float:
        """A plain call of `steps` denoiser calls, with its decode."""
        return self.row * steps + self.decode

    def calls(self, work: Work, steps: int) -> float:
        """What `work` costs, in plain calls of `steps` denoiser calls."""
        return self.of(work) / self.plain(steps)

    def fits(self, work: Work, compute: float, steps: int) -> bool:
        """Whether `compute` plain calls pay for `work`."""
        return self.calls(work, steps) <= compute * (1 + _ROUNDING)

    def most(self, work: Callable[[int], Work], compute: float, steps: int, least: int = 1) -> int:
        """The largest number, from `least` on, whose work `compute` plain calls pay for.

        Args:
            work: Of a number; costs rise with it.
            compute, steps: The budget, in plain calls of `steps` denoiser calls.
            least: What is returned where nothing fits.
        """
        if not self.fits(work(least), compute, steps):
            return least
        ahead = 1
        while self.fits(work(least + ahead), compute, steps):
            ahead *= 2
        low, high = least + ahead // 2, least + ahead  # low fits, high does not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.fits(work(middle), compute, steps)
            low, high = (middle, high) if fits else (low, middle)
        return low


def check_costs(costs: object) -> None:
    """Raise ValueError for something that is no `Costs`."""
    if not isinstance(costs, Costs):
        raise ValueError(f"costs={costs!r}: must be a Costs, such as steer.core.costs.ROWS")


ROWS = Costs()
"""Denoiser rows alone: decodes and scores cost nothing, a backward pass two rows."""
