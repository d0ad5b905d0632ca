"""Objectives that sample while they train, as configured: reward gradients and policy gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from steer.tune.advantages import Spread
from steer.tune.backprop import Cut, last_steps, one_step, spread_steps
from steer.tune.goal import Objective


class Sampled(Objective, ABC):
    """Objectives of sampling runs; they need `sampling`.

    Attributes:
        preset: Of `steer.methods.Rho`, what noise steps draw where the configuration names none.
    """

    reference: ClassVar[bool] = False
    labelled: ClassVar[bool] = False
    preset: ClassVar[str] = "ode"

    @abstractmethod
    def check(self, steps: int) -> None:
        """Raise ValueError where it does not go with runs of so many steps."""


class RewardGradient(Sampled):
    """Objectives that send the reward's own gradient back through the run.

    Attributes:
        ceiling: A reward that is enough, max(0, ceiling - R); None is -R.
        leash: Weight of the mean squared difference of what is scored from what the model before
            tuning makes of the same noise; 0 is no guard, above 0 costs that model's run.
        real: Weight of the denoising error on the images of the dataset `data`, ReFL's second loss
            (arXiv:2304.05977); 0 is none, above 0 costs one more call with a gradient.
        recompute: Hold the graph of one trained step at a time, and run it again on the way back;
            false holds all of them.
    """

    ceiling: float | None = None
    leash: float = Field(default=0.0, ge=0)
    real: float = Field(default=0.0, ge=0)
    recompute: bool = True

    @property
    def holds_reference(self) -> bool:
        return self.leash > 0

    @property
    def draws(self) -> int:
        """Fresh noisings of the last step, or 1 for the run's own."""
        return 1

    @abstractmethod
    def cut(self, steps: int, rng: np.random.Generator) -> Cut:
        """What of an update's runs has a gradient."""

    def check(self, steps: int) -> None:
        return


class DRaFT(RewardGradient):
    """DRaFT-K and, with `noisings`, DRaFT-LV (arXiv:2309.17400).

    Attributes:
        last: K, the last steps that are trained.
        noisings: The last step is trained from so many fresh noisings of the sample; 1 is the run's
            own last step. Only with last: 1.
    """

    name: ClassVar[str] = "draft"
    last: int = Field(default=1, ge=1)
    noisings: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_noisings(self) -> DRaFT:
        if self.noisings > 1 and self.last > 1:
            raise ValueError(
                f"objective.noisings={self.noisings} with last={self.last}: only the last step is "
                "noised again; set last: 1, or leave noisings out"
            )
        return self

    @property
    def draws(self) -> int:
        return self.noisings

    def cut(self, steps: int, rng: np.random.Generator) -> Cut:
        if self.noisings > 1:
            return Cut(frozenset(), steps)
        return last_steps(steps, self.last)

    def check(self, steps: int) -> None:
        _check_within("last", self.last, steps)


class AlignProp(RewardGradient):
    """AlignProp (arXiv:2310.03739): the last K steps, K drawn evenly for every update.

    Attributes:
        least, most: Of K; None is all steps.
    """

    name: ClassVar[str] = "alignprop"
    least: int = Field(default=1, ge=1)
    most: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_order(self) -> AlignProp:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"objective.most={self.most}: is below least={self.least}")
        return self

    def cut(self, steps: int, rng: np.random.Generator) -> Cut:
        most = steps if self.most is None else self.most
        return last_steps(steps, int(rng.integers(self.least, most + 1)))

    def check(self, steps: int) -> None:
        _check_within("least", self.least, steps)
        _check_within("most", self.most or 1, steps)


class DRTune(RewardGradient):
    """DRTune (arXiv:2405.00760), without its early stop: spread steps, inputs detached.

    Attributes:
        trained: How many steps, evenly spread with the first among them.
    """

    name: ClassVar[str] = "drtune"
    trained: int = Field(default=2, ge=1)

    def cut(self, steps: int, rng: np.random.Generator) -> Cut:
        return spread_steps(steps, self.trained)

    def check(self, steps: int) -> None:
        _check_within("trained", self.trained, steps)


class ReFL(RewardGradient):
    """ReFL (arXiv:2304.05977): one late step's x0; with `real`, its loss on real images.

    Attributes:
        window: Where that step is drawn, as shares of the run; the paper's 30 to 39 of 40 steps.
    """

    name: ClassVar[str] = "refl"
    window: tuple[float, float] = Field(default=(0.75, 1.0), strict=False)

    @model_validator(mode="after")
    def _check_window(self) -> ReFL:
        _check_shares(self.window, "the last quarter of the run is [0.75, 1.0]")
        return self

    def cut(self, steps: int, rng: np.random.Generator) -> Cut:
        return one_step(steps, _within(self.window, steps, rng))


class ImageReFL(ReFL):
    """ImageReFL (arXiv:2505.22569): an image of `data`, noised to a late step's level, and its x0.

    The authors' code noises the image to the window's first step and walks to the drawn one without
    a gradient. Here it is noised to the drawn one, so that one call is all.

    Attributes:
        window: Where that level is drawn, as shares of the run.
        real: Weight of that call's denoising error on the same image.
    """

    name: ClassVar[str] = "image_refl"
    real: float = Field(default=0.01, ge=0)


class DirectAlign(RewardGradient):
    """Direct-Align (SRPO, arXiv:2509.06942), without its relative reward of two captions: the run's
    own sample, noised to a level of the run and changed by one call there.

    Attributes:
        jump: How far down that call goes, as a share of noise; the paper's 0.1.
        window: Where the level is drawn, as shares of the run; early levels decide the layout.
    """

    name: ClassVar[str] = "direct_align"
    jump: float = Field(default=0.1, gt=0, le=1)
    window: tuple[float, float] = Field(default=(0.0, 1.0), strict=False)

    @model_validator(mode="after")
    def _check_window(self) -> DirectAlign:
        _check_shares(self.window, "the first half of the run is [0.0, 0.5]")
        return self

    def cut(self, steps: int, rng: np.random.Generator) -> Cut:
        return Cut(frozenset(), steps)

    def level(self, steps: int, rng: np.random.Generator) -> int:
        """The position in the run whose noise an update's samples are given."""
        return _within(self.window, steps, rng)


class PolicyGradient(Sampled):
    """Objectives that need scores alone: likelihood ratios of the steps that draw noise.

    Attributes:
        ratio_clip: How far the ratio of a step's densities may go from 1.
        kl: Weight of the divergence of a step from that of the model before tuning.
        spread: Of the rewards' standard deviation: `"global"`, or each `"prompt"`'s own.
        clip: Advantages are clipped there, in standard deviations, and divided by it.
    """

    ratio_clip: float = Field(default=0.2, gt=0)
    kl: float = Field(default=0.0, ge=0)
    spread: Spread = "global"
    clip: float = Field(default=5.0, gt=0)

    @property
    def holds_reference(self) -> bool:
        return self.kl > 0

    def check(self, steps: int) -> None:
        if steps < 2:
            raise ValueError(
                f"sampling.steps={steps}: the last step draws no noise, so {self.name} needs at "
                "least 2"
            )


class DDPO(PolicyGradient):
    """DDPO with importance sampling (arXiv:2305.13301): DDIM at eta = 1, advantages by prompt."""

    name: ClassVar[str] = "ddpo"
    preset: ClassVar[str] = "ddim"
    spread: Spread = "prompt"


class FlowGRPO(PolicyGradient):
    """Flow-GRPO (arXiv:2505.05470): its SDE, and a divergence from the model before tuning."""

    name: ClassVar[str] = "flow_grpo"
    preset: ClassVar[str] = "flow-sde"
    kl: float = Field(default=0.04, ge=0)


SAMPLED: Mapping[str, type[Sampled]] = {
    kind.name: kind
    for kind in (DRaFT, AlignProp, DRTune, ReFL, ImageReFL, DirectAlign, DDPO, FlowGRPO)
}


def _check_shares(window: tuple[float, float], such_as: str) -> None:
    low, high = window
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"objective.window={list(window)!r}: two shares in [0, 1], the smaller first; {such_as}"
        )


def _within(window: tuple[float, float], steps: int, rng: np.random.Generator) -> int:
    """A position drawn evenly from a window of a run."""
    first = min(int(window[0] * steps), steps - 1)
    last = max(first + 1, round(window[1] * steps))
    return int(rng.integers(first, last))


def _check_within(name: str, value: int, steps: int) -> None:
    if value > steps:
        raise ValueError(
            f"objective.{name}={value}: runs have sampling.steps={steps}; lower it, or sample in "
            "more steps"
        )
