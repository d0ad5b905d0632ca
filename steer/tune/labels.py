"""Which images are good, and how much that counts: by a threshold, advantages, or a search."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steer.core.errors import TuneError
from steer.rewards.thresholds.threshold import Threshold
from steer.tune.advantages import best_of_n_advantages, group_advantages
from steer.tune.checks import histogram
from steer.tune.dataset import Dataset
from steer.tune.goals import TGO, Advantaged, Labelled
from steer.tune.objectives import tgo_targets
from steer.tune.tables import list_names


@dataclass(frozen=True)
class Labels:
    """Of every image of a dataset, in the order of its index.

    Attributes:
        labels: (N,) float32, 1 for good ones.
        weights: (N,) float32, at least 1; or advantages of either sign.
        threshold: What decided; None where none did.
    """

    labels: Tensor
    weights: Tensor
    threshold: Threshold | None = None


def make_advantages(goal: Advantaged, data: Dataset) -> Labels:
    """Advantages within every prompt, as weights; labels are 1 where they are positive.

    Raises:
        TuneError: Scores that are all equal (with their histogram), or prompts with too few images.
    """
    scores = data.score(goal.score)
    if np.ptp(scores) == 0:
        raise TuneError(
            f"{goal.score}: all {len(scores)} scores are equal ({histogram(scores)}), so no image "
            "is better than another; use another reward, or images that differ"
        )
    if goal.advantage == "best_of_n":
        found = best_of_n_advantages(scores, data.prompt_ids, goal.n)
    else:
        found = group_advantages(scores, data.prompt_ids, goal.spread, goal.clip)
    known = torch.from_numpy(found).float()
    return Labels((known > 0).float(), known)


def found_labels(data: Dataset, both: bool) -> Labels:
    """Label 1 for what a search found, 0 for plain samples; all weights are 1.

    Args:
        data: Made with `search`.
        both: Whether plain samples are needed, too.

    Raises:
        TuneError: The dataset does not say what was found, or has no plain samples.
    """
    labels = torch.from_numpy(data.searched.astype(np.float32))
    if both and bool(labels.all()):
        raise TuneError(
            f"targets='winners': {str(data.folder)!r} has no plain samples beside those of the "
            "search; make it with search: {plain: true, ...}, or use sft"
        )
    return Labels(labels, torch.ones_like(labels))


def make_labels(goal: Labelled, data: Dataset) -> Labels:
    """Labels by a threshold fitted on the split "train" (or read from a file).

    Raises:
        TuneError: No threshold separates the scores (with their histogram), or levels are by
            prompt and a prompt has one image only.
        ThresholdError: The threshold's file is unusable or of another reward.
    """
    scores, train = data.score(goal.score), data.split == "train"
    if not train.any():
        raise TuneError(f"data={str(data.folder)!r}: no image of split 'train'")
    if np.ptp(scores[train]) == 0:
        raise TuneError(f"{_no_threshold(goal, scores[train])} All scores are equal")
    threshold = _threshold(goal, data, scores, train)
    c, units = (goal.c, goal.units) if isinstance(goal, TGO) else (0.0, "raw")
    prompts = data.prompts if threshold.prompts else None
    known = torch.from_numpy(scores)
    labels, weights = tgo_targets(known, threshold, prompts, c, units)  # pyright: ignore[reportArgumentType]
    good = float(labels[torch.from_numpy(train)].mean())
    if good in (0.0, 1.0):
        raise TuneError(
            f"{_no_threshold(goal, scores[train])} With tau = {threshold.tau:.6g}, "
            f"{'all' if good else 'none'} of the images are good; choose another quantile"
        )
    return Labels(labels, weights, threshold)


def _no_threshold(goal: Labelled, scores: NDArray[np.float64]) -> str:
    return (
        f"{goal.score}: no threshold separates good images from bad ones. "
        f"Histogram of {len(scores)} scores: {histogram(scores)}."
    )


def _threshold(
    goal: Labelled, data: Dataset, scores: NDArray[np.float64], train: NDArray[np.bool_]
) -> Threshold:
    reward = _reward(goal, data)
    if goal.threshold is not None:
        threshold = Threshold.load(goal.threshold)
        threshold.check_name(reward)
        return threshold
    prompts = [text for text, used in zip(data.prompts, train, strict=True) if used]
    if not goal.per_prompt:
        return Threshold.fit(scores[train], goal.quantile, reward=reward)
    alone = [text for text, n in Counter(prompts).items() if n == 1]
    if alone:
        raise TuneError(
            f"objective.per_prompt: {len(alone)} prompt(s) have one image and no counterpart to be "
            f"held against: {list_names(alone)}; make more images of them, leave them out, or set "
            "per_prompt: false"
        )
    by_prompt: dict[str, list[float]] = {}
    for text, score in zip(prompts, scores[train].tolist(), strict=True):
        by_prompt.setdefault(text, []).append(score)
    # Prompts of the split "test" have no level of their own fitted: theirs is the global one.
    return Threshold.fit(by_prompt, goal.quantile, per_prompt=True, reward=reward, unknown="global")


def _reward(goal: Labelled, data: Dataset) -> str:
    if goal.score == "score":
        return str(data.manifest.get("reward", ""))
    return goal.score.removeprefix("score_")
