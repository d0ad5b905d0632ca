"""Stored images through rewards and judges, a block at a time, and how much seeds differ.

Scores are of the 8-bit images on disk, as anyone can check them. A block is a fixed run of an
arm's prompts with all seeds: who scores it, and what was scored before, changes nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steer.core.errors import ComparisonError, RewardError
from steer.jobs.compare.config import Comparison
from steer.jobs.compare.processes import Processes
from steer.jobs.compare.prompts import PromptSet
from steer.jobs.compare.store import Store, Unit
from steer.jobs.reward_loader import RewardLoader
from steer.rewards.parts import check_prompts, is_relative, scores_of


BLOCK = 32
"""Most images of a block."""

ORACLE, ORACLE_ALL = "oracle", "oracle-all"
PIXELS = "pixels"
_GRID = 16


def reported_rewards(comparison: Comparison, reward: Any = None) -> list[str]:
    """The rewards whose scores are reported: the optimised one first, where it has any.

    Raises:
        ComparisonError: The optimised reward only ranks the candidates of one call, and no judge is
            named, so there is nothing to report.
    """
    relative = reward is not None and is_relative(reward)
    relative = relative or comparison.reward.strip().endswith(")")
    if relative and not comparison.judges:
        raise ComparisonError(
            f"reward={comparison.reward!r} only ranks the candidates of one call, so it gives an "
            "image no score of its own: name judges (its parts, for example)"
        )
    return [*([] if relative else [comparison.reward]), *comparison.judges]


def blocks(prompts: int, seeds: int) -> list[range]:
    """Prompt indices by block, the same for every arm and however many processes there are."""
    size = max(1, BLOCK // seeds)
    return [range(at, min(at + size, prompts)) for at in range(0, prompts, size)]


def check_judges(comparison: Comparison, prompts: PromptSet) -> None:
    """See that every prompt can be graded, where the oracle is to grade; else ComparisonError."""
    if not {ORACLE, ORACLE_ALL} & {comparison.reward, *comparison.judges}:
        return
    from steer.shapes import parse

    if comparison.reward in (ORACLE, ORACLE_ALL):
        raise ComparisonError(f"reward={comparison.reward!r}: the oracle judges, it is no reward")
    for text in prompts.texts:
        try:
            parse(text)
        except ValueError as error:
            raise ComparisonError(
                f"judges name the oracle, which grades captions of the shapes world only: {error}"
            ) from error


def check_scorers(
    comparison: Comparison, prompts: PromptSet, device: str, names: Sequence[str]
) -> None:
    """See, before anything is drawn, that every reward that will score can be loaded and takes the
    prompts; each is let go before the next.

    Raises:
        CheckpointError, ValueError: A reward that is not to be had, or a prompt that it cannot
            score.
    """
    for name in [*names, *diversity_names(comparison)]:
        if name not in (ORACLE, ORACLE_ALL, DIVERSITY + PIXELS):
            _load(name, comparison, device, prompts)
            _release()


def score_missing(
    store: Store, comparison: Comparison, prompts: PromptSet, processes: Processes, names: list[str]
) -> Iterator[int]:
    """Score this process's share of the blocks that lack scores; yields images as they are done.

    Raises:
        CheckpointError, ValueError: A reward that is not to be had.
        RewardError: A score that is not a finite number.
    """
    spans = list(enumerate(blocks(len(prompts.prompts), len(comparison.seeds))))
    work = [(arm.name, k, span) for arm in comparison.arms for k, span in spans]
    mine = processes.share(work)
    for name in [*names, *diversity_names(comparison)]:
        judge = None
        for arm, k, span in mine:
            units = [Unit(arm, p, s) for p in span for s in comparison.seeds]
            images = _digests(store, units)
            if store.scores(name, arm, k, images) is not None:
                continue
            judge = judge or _judge(name, comparison, prompts, processes.device)
            texts = [prompts.texts[unit.prompt] for unit in units]
            pixels = load_images(store, units).to(processes.device)
            found = judge(pixels, texts)
            store.put_scores(name, arm, k, {"reward": name, "images": images, "scores": found})
            yield len(units)
        del judge
        _release()


def gather(store: Store, comparison: Comparison, prompts: PromptSet, name: str) -> np.ndarray:
    """All stored scores of one reward, `(arms, prompts, seeds)`; for diversity `(arms, prompts)`.

    Raises:
        ComparisonError: Some are missing (the run is not finished).
    """
    per_arm = []
    for arm in comparison.arms:
        rows: list[Any] = []
        for k, span in enumerate(blocks(len(prompts.prompts), len(comparison.seeds))):
            units = [Unit(arm.name, p, s) for p in span for s in comparison.seeds]
            found = store.scores(name, arm.name, k, _digests(store, units))
            if found is None:
                raise ComparisonError(f"scores of {name!r} are missing: run steer compare again")
            rows += found["scores"]
        per_arm.append(rows)
    values = np.array(per_arm, dtype=np.float64)
    if name.startswith(DIVERSITY):
        return values
    return values.reshape(len(comparison.arms), len(prompts.prompts), len(comparison.seeds))


DIVERSITY = "diversity:"


def diversity_names(comparison: Comparison) -> list[str]:
    """What diversity is stored under; nothing with one seed, where there is none."""
    return [DIVERSITY + comparison.diversity] if len(comparison.seeds) > 1 else []


def load_images(store: Store, units: Sequence[Unit]) -> Tensor:
    """The stored images, float `(B, 3, H, W)` in [0, 1]."""
    arrays = []
    for unit in units:
        with Image.open(store.image(unit)) as image:
            arrays.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def spread(features: Tensor) -> list[float]:
    """Mean pairwise `1 - cosine` among the seeds' unit features `(P, S, D)`, per prompt."""
    seeds = features.shape[1]
    features = torch.nn.functional.normalize(features.double(), dim=-1)
    total = (features.sum(1) ** 2).sum(-1)  # sum of all cosines, S of them with itself
    return (1 - (total - seeds) / (seeds * (seeds - 1))).clamp(min=0).tolist()


def pixel_spread(images: Tensor, seeds: int) -> list[float]:
    """Mean pairwise RMSE among the seeds' images, seen in 16 x 16 pixels, per prompt."""
    small = torch.nn.functional.adaptive_avg_pool2d(images, _GRID).flatten(1).double()
    groups = small.unflatten(0, (-1, seeds))
    distances = torch.cdist(groups, groups, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum((1, 2)) / (seeds * (seeds - 1))
    return (mean / small.shape[1] ** 0.5).tolist()


def _digests(store: Store, units: Sequence[Unit]) -> list[str]:
    found = [store.recorded_digest(unit) for unit in units]
    lost = next((unit for unit, digest in zip(units, found, strict=True) if digest is None), None)
    if lost is not None:
        raise ComparisonError(f"the image {store.image(lost)} is missing: run steer compare again")
    return [digest for digest in found if digest is not None]


def _load(name: str, comparison: Comparison, device: str, prompts: PromptSet) -> Any:
    """The reward behind what scores or features are stored under, seen to fit its use."""
    rewards = RewardLoader(device, checkpoints=comparison.checkpoints)
    if name.startswith(DIVERSITY):
        name = name.removeprefix(DIVERSITY)
        reward: Any = rewards.load(name)
        if getattr(reward, "encoder", None) is None or getattr(reward, "preprocess", None) is None:
            raise ComparisonError(
                f"diversity={name!r}: has no image encoder of its own; name 'pixels' or a "
                "CLIP-like reward, such as clip:ViT-B-32:openai"
            )
        return reward
    reward = rewards.load(name, comparison.scale if name == comparison.reward else None)
    if is_relative(reward):
        raise ComparisonError(f"judge {name!r} only ranks images of one call: name its parts")
    check_prompts(reward, prompts.texts)
    return reward


def _judge(name: str, comparison: Comparison, prompts: PromptSet, device: str) -> Any:
    """A function of images and prompts to a list of numbers, by what it is stored under."""
    seeds = len(comparison.seeds)
    if name == DIVERSITY + PIXELS:
        return lambda images, _: pixel_spread(images, seeds)
    if name in (ORACLE, ORACLE_ALL):
        return lambda images, texts: _oracle(images, texts, whole=name == ORACLE_ALL)
    reward = _load(name, comparison, device, prompts)
    if name.startswith(DIVERSITY):
        return _diversity(reward, seeds)

    @torch.no_grad()
    def score(images: Tensor, texts: list[str]) -> list[float]:
        found = scores_of(name, reward, images, texts)
        if not bool(found.isfinite().all()):
            odd = texts[int((~found.isfinite()).nonzero()[0])]
            raise RewardError(f"reward {name!r} gave no finite number for the prompt {odd!r}")
        return found.double().tolist()

    return score


def _oracle(images: Tensor, texts: Sequence[str], *, whole: bool) -> list[float]:
    from steer.shapes import oracle

    found = []
    for image, text in zip(images.cpu(), texts, strict=True):
        verdict = oracle(image[None], text)[0]
        found.append(float(verdict.all_met) if whole else float(verdict.fraction))
    return found


def _diversity(reward: Any, seeds: int) -> Any:
    @torch.no_grad()
    def measure(images: Tensor, texts: Sequence[str]) -> list[float]:
        features = reward.encoder.images(reward.preprocess(images))
        return spread(features.unflatten(0, (-1, seeds)))

    return measure


def _release() -> None:
    """Give a judge's memory back before the next one needs it."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
