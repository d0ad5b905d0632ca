"""Stored images through rewards and judges, a block at a time, and how much seeds differ.

Scores are of the 8-bit images on disk, as anyone can check them. A block is a fixed run of an
arm's prompts with all seeds: who scores it, and what was scored before, changes nothing. It is
sent to whoever scores it with its images' files, so that only the job itself reads the folder.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steer.core.errors import ComparisonError, RewardError
from steer.jobs.compare.config import Comparison
from steer.jobs.compare.prompts import PromptSet
from steer.jobs.compare.store import Store, Unit
from steer.jobs.device import usable_device
from steer.jobs.reward_loader import RewardLoader
from steer.jobs.spread.worker import Worker
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
    """Prompt indices by block, the same for every arm and however many workers there are."""
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


def check_scorers(comparison: Comparison, prompts: PromptSet, names: Sequence[str]) -> None:
    """See that all that will score can be loaded and takes the prompts, before anything is drawn.

    One is let go before the next is loaded.

    Raises:
        CheckpointError, ValueError: A reward that is not to be had, or a prompt that it cannot
            score.
    """
    for name in [*names, *diversity_names(comparison)]:
        if name not in (ORACLE, ORACLE_ALL, DIVERSITY + PIXELS):
            _load(name, comparison, prompts.texts)
            _release()


@dataclass(frozen=True)
class Block:
    """Images that one reward lacks, to be scored together.

    Attributes:
        reward: What the scores are stored under.
        arm, number: Which block of which arm.
        texts: A prompt per image.
        files: The images' PNG files.
        digests: Their SHA-256, as recorded.
    """

    reward: str
    arm: str
    number: int
    texts: tuple[str, ...]
    files: tuple[bytes, ...]
    digests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.reward!r} on block {self.number} of arm {self.arm!r}"


def missing_blocks(
    store: Store, comparison: Comparison, prompts: PromptSet, names: Sequence[str]
) -> Iterator[Block]:
    """The blocks that lack scores, one reward after the other.

    Raises:
        ComparisonError: An image is missing.
    """
    for name in [*names, *diversity_names(comparison)]:
        for arm in comparison.arms:
            for k, units in enumerate(_blocks_of(arm.name, comparison, prompts)):
                digests = _digests(store, units)
                if store.scores(name, arm.name, k, digests) is None:
                    texts = tuple(prompts.texts[unit.prompt] for unit in units)
                    files = tuple(store.image(unit).read_bytes() for unit in units)
                    yield Block(name, arm.name, k, texts, files, tuple(digests))


class Judges(Worker[Block, list[float]]):
    """Scores blocks; one judge is loaded at a time, with its first block.

    Args:
        comparison: What is compared.
        texts: All prompts, which a judge may refuse.
    """

    def __init__(self, comparison: Comparison, texts: Sequence[str]) -> None:
        self._comparison, self._texts = comparison, texts
        self._device = usable_device(comparison.device)
        self._name = ""
        self._judge: Any = None

    def work(self, unit: Block) -> list[float]:
        """One number per image, or per prompt for diversity.

        Raises:
            CheckpointError, ValueError: A reward that is not to be had.
            RewardError: A score that is not a finite number.
        """
        if self._name != unit.reward:
            self.close()
            self._judge = _judge(unit.reward, self._comparison, self._texts)
            self._name = unit.reward
        return self._judge(load_images(unit.files).to(self._device), list(unit.texts))

    def close(self) -> None:
        """Let go of the judge."""
        self._name, self._judge = "", None
        _release()


def _blocks_of(arm: str, comparison: Comparison, prompts: PromptSet) -> Iterator[list[Unit]]:
    for span in blocks(len(prompts.prompts), len(comparison.seeds)):
        yield [Unit(arm, prompt, seed) for prompt in span for seed in comparison.seeds]


def gather(store: Store, comparison: Comparison, prompts: PromptSet, name: str) -> np.ndarray:
    """All stored scores of one reward, `(arms, prompts, seeds)`; for diversity `(arms, prompts)`.

    Raises:
        ComparisonError: Some are missing (the run is not finished).
    """
    per_arm = []
    for arm in comparison.arms:
        rows: list[Any] = []
        for k, units in enumerate(_blocks_of(arm.name, comparison, prompts)):
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


def load_images(files: Sequence[bytes]) -> Tensor:
    """PNG files as images, float `(B, 3, H, W)` in [0, 1]."""
    arrays = []
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
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


def _load(name: str, comparison: Comparison, texts: Sequence[str]) -> Any:
    """The reward behind what scores or features are stored under, seen to fit its use."""
    device = usable_device(comparison.device)
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
    check_prompts(reward, texts)
    return reward


def _judge(name: str, comparison: Comparison, texts: Sequence[str]) -> Any:
    """A function of images and prompts to a list of numbers, by what it is stored under."""
    seeds = len(comparison.seeds)
    if name == DIVERSITY + PIXELS:
        return lambda images, _: pixel_spread(images, seeds)
    if name in (ORACLE, ORACLE_ALL):
        return lambda images, texts: _oracle(images, texts, whole=name == ORACLE_ALL)
    reward = _load(name, comparison, texts)
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
