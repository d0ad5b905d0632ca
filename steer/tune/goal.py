"""What an objective is: from errors of policy and reference to a loss per row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steer.core.settings import Settings
from steer.tune.objectives import implicit_reward


@dataclass(frozen=True)
class Errors:
    """Errors of one batch, and what its images are labelled with.

    Of denoisers these are mean squared errors, of masked generators minus mean log-likelihoods.

    Attributes:
        policy: (B,); for pairs (2 B,), all winners before all losers.
        reference: Those of the reference, at the same noise and timesteps; None without one.
        labels: (B,) 1 for good images, of labelled objectives.
        weights: (B,), likewise; signed where they are advantages; of pairs their margins.
        baseline: (), of Diffusion-KTO; None takes it from this batch.
        change: (B,) mean squared difference of the policy's prediction from the reference's (of
            tokens their KL divergence); None where the objective does not ask for it.
        product: (B,) mean product of the winners' prediction errors with the losers'; likewise.
    """

    policy: Tensor
    reference: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None
    baseline: Tensor | None = None
    change: Tensor | None = None
    product: Tensor | None = None

    def reward(self, beta: float) -> Tensor:
        """The implicit rewards, (B,); needs the reference."""
        assert self.reference is not None
        return implicit_reward(-self.policy, -self.reference, beta)


@dataclass(frozen=True)
class Outcome:
    """Of one batch; `named` is what of it is logged.

    Attributes:
        loss: (B,) per row, or per pair.
        correct: (B,) 1 where the implicit reward agrees with the preference, 0.5 in a tie; None
            without a reference.
        margin: (B,) the winner's implicit reward minus the loser's, or the reward with the label's
            sign; None without a reference.
    """

    loss: Tensor
    correct: Tensor | None = None
    margin: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """What is known of the rows, (B,) each, by the name it is logged under."""
        known = {"loss": self.loss, "accuracy": self.correct, "margin": self.margin}
        return {name: value.detach() for name, value in known.items() if value is not None}


class Objective(Settings):
    """What is optimised, with its parameters; `name` is what configurations call it.

    Attributes:
        pairs: Learns from pairs rather than from single images.
        reference: Needs the reference model's errors.
        labelled: Needs a label for every image.
        change: Needs how far the policy's prediction is from the reference's.
        on_policy: Its reference is the policy that drew the samples.
        squared: Its loss is made of squared errors, and of no other likelihood.
        scaled_by: The setting whose default is made for the size of denoising errors.
    """

    name: ClassVar[str] = ""
    pairs: ClassVar[bool] = False
    reference: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    change: ClassVar[bool] = False
    on_policy: ClassVar[bool] = False
    squared: ClassVar[bool] = False
    scaled_by: ClassVar[str] = ""

    @property
    def holds_reference(self) -> bool:
        """Whether the model before tuning will be asked."""
        return self.reference

    @property
    def takes_votes(self) -> bool:
        """Whether the margins of its pairs must be shares of votes."""
        return False

    @property
    def product(self) -> bool:
        """Whether it needs `Errors.product`."""
        return False


class Goal(Objective, ABC):
    """An objective of denoising errors: on images, noised again."""

    @abstractmethod
    def loss(self, errors: Errors) -> Outcome:
        """The loss per row."""

    def baseline(self, errors: Errors) -> Tensor | None:
        """What the loss needs of the whole batch (over all processes, the mean is taken)."""
        return None


def single_outcome(loss: Tensor, reward: Tensor, labels: Tensor) -> Outcome:
    """The outcome of single images from losses, implicit rewards and labels, (B,) each."""
    signed = (2 * labels.to(reward) - 1) * reward.detach()
    return Outcome(loss, agreement(signed), signed)


def agreement(margin: Tensor) -> Tensor:
    """1 where the margin is positive, 0.5 where it is 0; (B,)."""
    return (1 + margin.detach().sign()) / 2
