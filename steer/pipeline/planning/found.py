"""What pilots said: the data of plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steer.core.costs import Costs
from steer.pipeline.planning.choice import Decoder, Plan
from steer.pipeline.planning.knowledge import Crowd, Foresight, Shorter


@dataclass(frozen=True, kw_only=True)
class Found:
    """What pilot runs on a pipeline, reward and judge say that compute is best spent on.

    Attributes:
        plans: One per budget, rising.
        pipeline: The pipeline's class.
        model: What it was loaded from.
        asked: Denoising steps asked for.
        steps: Denoiser calls that they came to.
        reward, version: What is optimised, and its version where it declares one.
        judge: The held-out reward that chose; the reward where there was none.
        prompts, n: How many pilots: prompts, and particles of each.
        costs: What one of each cost.
        call: Arguments of the pilots' calls.
        shorter, foresight, crowds: What else the pilots say.
        preview: The decoder of previews that the plans are for, as `guided(preview=)` takes it;
            empty for what the guided pipeline had.
        decoders: Which were looked at, where there were several.
        unsampled: Ways of drafting that the scheduler does not allow, with its word on it.
    """

    plans: tuple[Plan, ...]
    pipeline: str
    model: str
    asked: int
    steps: int
    reward: str
    version: str = ""
    judge: str
    prompts: int
    n: int
    costs: Costs
    call: Mapping[str, Any]
    shorter: tuple[Shorter, ...] = ()
    foresight: tuple[Foresight, ...] = ()
    crowds: tuple[Crowd, ...] = ()
    preview: str = ""
    decoders: tuple[Decoder, ...] = ()
    unsampled: Mapping[str, str]

    @property
    def peak(self) -> int:
        """The n at which the judge likes the best of n most: beyond, the reward is over-optimised.

        It is the number of pilots where more was better throughout.
        """
        return max(self.crowds, key=lambda crowd: crowd.judge.mean).n
