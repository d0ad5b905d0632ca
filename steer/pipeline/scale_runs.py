"""Plain images of every prompt, scored: the scales that rewards and prompts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from steer.core.types import Reward
from steer.driver.call import of_prompts
from steer.methods.selection.best_of_n import BestOfN
from steer.pipeline.pilot_runs import check_pilots, model_name
from steer.rewards.base import WeightedReward
from steer.rewards.parts import check_absolute, identity
from steer.rewards.thresholds.scale import Scale, Scales, Unit, check_unit
from steer.rewards.thresholds.scores import Scores


def fit_scales(
    guided: Any,
    prompts: Sequence[str],
    *,
    each: int = 8,
    unit: Unit = "z",
    unknown: Literal["raise", "global"] = "raise",
    seed: int = 0,
    batch: int = 1,
    **call: Any,
) -> Scales:
    """The scale of a guided pipeline's reward, or of every part of a weighted sum.

        scales = steer.pipeline.fit_scales(guided, prompts, num_inference_steps=20)
        scales.save("scales.json")
        reward = steer.reward("hpsv2=1,imagereward=1", scale="scales.json")

    It costs `each` plain images per prompt.

    Args:
        guided: A guided pipeline; only its reward is used, not its method.
        prompts: Those that will be searched, each of them once; others with `unknown="global"`.
        each: Plain images of every prompt, at least 2.
        unit, unknown: See `Scale`.
        seed: Prompt i has a generator seeded with `seed + i`.
        batch: Prompts per call.
        **call: What else the pipeline is given: the very settings that will be used.

    Returns:
        One `Scale` for each part.

    Raises:
        ValueError: No prompts, or one that stands there twice, numbers out of range, call arguments
            that are set here, or a reward that only ranks candidates.
        ThresholdError: Images of which none of a prompt differ in score.
    """
    check_absolute(guided.reward, "a scale")
    check_pilots(prompts, batch, call)
    check_unit(unit)
    if type(each) is not int or each < 2:
        raise ValueError(f"each={each!r}: plain images per prompt, at least 2, such as 8")
    if len(set(prompts)) < len(prompts):
        twice = next(text for text in prompts if list(prompts).count(text) > 1)
        raise ValueError(f"prompts has {twice!r} twice: name it once and raise each={each}")
    reward = guided.reward
    parts = reward.rewards if isinstance(reward, WeightedReward) else {reward.name: reward}
    scores = {name: _scores(reward, guided) for name, reward in parts.items()}
    for start in range(0, len(prompts), batch):
        texts = list(prompts[start : start + batch])
        seeds = range(seed + start, seed + start + len(texts))
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        given = {
            "output_type": "latent",
            **of_prompts(call, len(texts)),
            "prompt": texts,
            "generator": generators,
        }
        guided(**given, method=BestOfN(each))
        for number, text in enumerate(texts):
            for row in guided.report.trace.of("score", number):
                _add(scores, row, text)
    return Scales(Scale.fit(own, unit=unit, unknown=unknown) for own in scores.values())


def _scores(reward: Reward, guided: Any) -> Scores:
    name, version = identity(reward)
    return Scores(name, version=version, model=model_name(guided.pipe))


def _add(scores: Mapping[str, Scores], row: Mapping[str, Any], text: str) -> None:
    """Take in one line of the trace: of every part, or of the reward where it is scaled whole."""
    for name, own in scores.items():
        own.add(row["reward"] if len(scores) == 1 else row["parts"][name], text)
