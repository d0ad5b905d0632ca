"""What the rounds of on-policy tuning are: how samples are drawn, judged and kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from steer.core.settings import Settings
from steer.tune.data.config import Count, PairConfig, SearchConfig, check_pairs
from steer.tune.goal import Objective
from steer.tune.goals import Advantaged


class RoundsConfig(Settings):
    """Sample, score, train, and again.

    Attributes:
        count: Rounds.
        updates: Of each round.
        prompts: As `steer tune data` takes them.
        prompts_per_round: Drawn anew for every round, all of them once before one comes again;
            None takes all.
        images: Samples of each of a round's prompts.
        reward: What is optimised; a name or a mixture, as `steer.reward` takes it.
        judge: Scores the samples and is never optimised.
        patience: The run ends, with the best-judged weights, when the judge's mean has stayed
            below its best for so many rounds.
        steps: Of the pipeline's call; None is its own default.
        guidance_scale: Likewise; None is the loss's `guidance_scale`, and 1 where it has none.
        negative_prompt, call: Likewise; `call` holds further arguments.
        search: How samples are searched for; None makes plain calls.
        pairs: How samples become pairs, for objectives of pairs: by the reward alone, whatever
            `consensus` says, so that the judge is not optimised.
        keep: Samples of earlier rounds that are trained on, too: `discard`, `all`, or of how many.
        reference: What objectives with a reference hold the policy against: the `base`, or what it
            was when the `round` began. (`nft` and `awm`: always what drew the samples.)
        old_decay: Samples are drawn by an average of the policies before every round with this
            decay; 0 draws them by the policy itself.
        batch: Samples per pipeline call.
        stored_dtype: Of the stored latents and text features.
    """

    count: Count
    updates: Count
    prompts: Any
    prompts_per_round: Count | None = None
    images: Annotated[int, Field(ge=1)] = 8
    reward: str
    judge: str | None = None
    patience: Count = 3
    steps: Count | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    call: Mapping[str, Any] = Field(default_factory=dict)
    search: SearchConfig | None = None
    pairs: PairConfig | None = None
    keep: Literal["discard", "all"] | Count = "discard"
    reference: Literal["base", "round"] = "base"
    old_decay: float = Field(default=0.0, ge=0, lt=1)
    batch: Count = 16
    stored_dtype: Literal["float16", "bfloat16", "float32"] = "float32"

    @field_validator("reward", "judge")
    @classmethod
    def _strip(cls, name: str | None) -> str | None:
        return None if name is None else name.strip()

    @model_validator(mode="after")
    def _check_judge(self) -> RoundsConfig:
        if self.judge == self.reward:
            raise ValueError(
                f"rounds.judge={self.judge!r}: is the reward itself, which rises whatever becomes "
                "of the images; name another reward, or leave judge out"
            )
        return self

    @property
    def rewards(self) -> tuple[str, ...]:
        """The reward, and the judge where there is one."""
        return (self.reward,) if self.judge is None else (self.reward, self.judge)

    def kept(self, number: int) -> range:
        """The rounds whose samples are trained on in round `number` (0, 1, ...)."""
        before = {"discard": 0, "all": number}
        count = self.keep if isinstance(self.keep, int) else before[self.keep]
        return range(max(0, number - count), number + 1)

    def guidance(self, loss: float | None) -> float:
        """The guidance scale that samples are drawn with, given the loss's."""
        own = 1.0 if loss is None else loss
        return own if self.guidance_scale is None else self.guidance_scale


def check_rounds(
    rounds: RoundsConfig, goal: Objective, guidance_scale: float | None, text_dropout: float
) -> None:
    """Raise ValueError where rounds and the rest of a configuration do not go together."""
    sampled = rounds.guidance(guidance_scale)
    for name, value in (("guidance_scale", guidance_scale), ("text_dropout", text_dropout)):
        if value and sampled <= 1:
            raise ValueError(
                f"rounds.guidance_scale={sampled:g} with {name}={value:g}: samples that are drawn "
                f"without guidance leave no features of the empty prompt; leave {name} out, or "
                "sample with guidance"
            )
    if rounds.pairs is not None and not goal.pairs:
        raise ValueError(
            f"rounds.pairs with objective={goal.name!r}: it learns from single images; leave pairs "
            "out, or use dpo or poly_dpo"
        )
    if goal.takes_votes:
        raise ValueError(
            f"rounds with objective={goal.name!r} without span: rounds make pairs by the reward "
            "alone, whose margins are differences of its scores; set objective.span, its largest "
            "minus smallest score"
        )
    if goal.pairs:
        check_pairs(rounds.pairs or PairConfig(), rounds.images, rounds.search)
    images = rounds.images
    if isinstance(goal, Advantaged):
        least = goal.n if goal.advantage == "best_of_n" else 2
        if images < least:
            raise ValueError(
                f"rounds.images={images}: {goal.name} compares at least {least} images of a "
                f"prompt; set images: {least} or more"
            )
