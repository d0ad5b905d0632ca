"""Made-up pilots, whose quality and previews are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from steer.core.costs import ROWS
from steer.pipeline.planning.choice import Chooser
from steer.pipeline.planning.kinds import kinds_of
from steer.pipeline.planning.knowledge import crowds, foresight, shorter
from steer.pipeline.planning.plans import Plans
from steer.pipeline.planning.replay import Floats, Pool, Pools


PLANNED_STEPS = 20
PLANNED_BUDGETS = (2.0, 4.0, 8.0)


def made_pools(
    *,
    count: int = 20,
    prompts: int = 40,
    n: int = 8,
    knows: float = 1.0,
    honest: float = 1.0,
    loss: float = 0.0,
    seed: int = 0,
) -> Pools:
    """Pools of every kind, of standard normal rewards, the same particles in each.

    Args:
        count: Denoiser calls.
        prompts, n: How many.
        knows: Correlation of previews with what they become.
        honest: Correlation of the judge's score with the reward.
        loss: What every denoiser call that a particle goes without takes off both.
        seed: Of the numbers.
    """
    rng = np.random.default_rng(seed)

    def correlated(values: Floats, share: float) -> Floats:
        return share * values + np.sqrt(1 - share**2) * rng.standard_normal(values.shape)

    rewards = rng.standard_normal((prompts, n))
    judged = correlated(rewards, honest)
    pools = []
    for kind in kinds_of(count):
        less = loss * (count - kind.rows)
        looks = [correlated(rewards, knows) for _ in kind.looks]
        previews = np.stack(looks, 1) if looks else np.zeros((prompts, 0, n))
        pools.append(Pool(kind, previews, rewards - less, judged - less))
    return Pools(pools)


def made_plans(reward: str = "redness", steps: int = PLANNED_STEPS, **pools: Any) -> Plans:
    """Plans for the tiny Stable Diffusion and a reward, from made-up pilots."""
    found = made_pools(count=steps, **{"loss": 0.3, "knows": 0.5, "prompts": 60, **pools})
    chooser = Chooser(found, PLANNED_BUDGETS, ROWS)
    return Plans(
        plans=tuple(chooser.at(budget) for budget in PLANNED_BUDGETS),
        pipeline="StableDiffusionPipeline",
        model="tiny",
        asked=steps,
        steps=steps,
        reward=reward,
        judge="blueness",
        prompts=60,
        n=8,
        costs=ROWS,
        call={"guidance_scale": 7.5},
        shorter=shorter(found),
        foresight=foresight(found),
        crowds=crowds(found.by_name["full"]),
        unsampled={},
    )
