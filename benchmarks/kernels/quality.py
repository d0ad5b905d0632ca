"""Do fast scores decide as float32 ones do? Ranks, choices and what a wrong choice costs.

Per prompt, over the candidates of that prompt: Spearman's rank correlation, whether the best
candidate is the same one (top-1), and the regret, the float32 score lost by taking the fast
scorer's best, in standard deviations of that prompt's float32 scores. Means over prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

import steer
from benchmarks.kernels.arms import Arm, Score
from benchmarks.kernels.check import wide
from benchmarks.kernels.models import texts_of
from steer.rewards.clip.fused import Fused
from steer.shapes.captions import caption
from steer.shapes.drawing import place, render
from steer.shapes.scenes import perturb, sample_spec


Scores = NDArray[np.float64]
Quality = dict[str, float]


def decisions(fast: Scores, exact: Scores) -> Quality:
    """How the choices by `fast` compare with those by `exact`.

    Args:
        fast: `(prompts, candidates)`.
        exact: The same in float32 or better.

    Returns:
        `spearman`, `kendall`, `top1`, `regret` (in standard deviations of a prompt's exact
        scores), `error` (largest difference, in the same unit) and `prompts`.

    Raises:
        ValueError: Shapes that do not fit, fewer than two candidates, or scores that are not
            finite.
    """
    if fast.shape != exact.shape or fast.ndim != 2 or fast.shape[1] < 2 or not len(fast):
        raise ValueError(
            f"fast.shape={fast.shape}, exact.shape={exact.shape}: pass (prompts, candidates) "
            "twice, with at least two candidates"
        )
    if not (np.isfinite(fast).all() and np.isfinite(exact).all()):
        raise ValueError("fast, exact: scores that are not finite; look at the gate first")
    rows, spread = np.arange(len(exact)), exact.std(1)
    spread = np.where(spread > 0, spread, 1.0)
    chosen, best = fast.argmax(1), exact.argmax(1)
    return {
        "spearman": _correlation(stats.spearmanr, fast, exact),
        "kendall": _correlation(stats.kendalltau, fast, exact),
        "top1": float((chosen == best).mean()),
        "regret": float(((exact[rows, best] - exact[rows, chosen]) / spread).mean()),
        "error": float((np.abs(fast - exact).max(1) / spread).max()),
        "prompts": len(exact),
    }


def _correlation(measure: Callable[..., Any], fast: Scores, exact: Scores) -> float:
    """Mean over prompts; that of constant scores is not defined, and counts as 0."""
    pairs = zip(fast, exact, strict=True)
    found = [float(measure(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
    return float(np.mean(found))


def table(score: Score, images: Tensor, texts: Tensor) -> Scores:
    """Every image against every text: `(texts, images)`."""
    rows = []
    with torch.no_grad():
        for text in texts:
            rows.append(score(images, text.expand(len(images), -1).contiguous()).double().cpu())
    return torch.stack(rows).numpy()


def of_arms(
    arms: list[Arm], exact: Score, images: Tensor, prompts: int, width: int
) -> dict[str, Quality]:
    """The timed arms, on their own weights and random texts, against `exact`."""
    texts, work = texts_of(prompts, width, images.device), wide(images.device)
    truth = table(exact, images.to(work), texts.to(work))
    return {arm.name: decisions(table(arm.score, images, texts), truth) for arm in arms}


WAYS: dict[str, tuple[str, Fused]] = {
    "float32 fused": ("float32", True),
    "bfloat16": ("bfloat16", False),
    "bfloat16 fused": ("bfloat16", True),
    "float16": ("float16", False),
    "fp8": ("bfloat16", "fp8"),
}
"""Of a trained model: name, dtype and `fused` of each way to score with it."""


def candidates(prompts: int, count: int, seed: int = 0) -> list[tuple[str, Tensor]]:
    """Captions of the bundled world, each with `count` pictures `(count, 3, 64, 64)`.

    A quarter is true of the caption; the others are wrong in one aspect, so that scores differ by
    little and by much.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(prompts):
        spec = sample_spec(rng, "held_out")
        scenes = [place(spec if i % 4 == 0 else perturb(spec, rng), rng) for i in range(count)]
        found.append((caption(spec), render(scenes)))
    return found


def of_a_trained_model(
    device: torch.device, prompts: int, count: int
) -> dict[str, Quality | dict[str, str]]:
    """The bundled preference scorer in every precision, against float32 by open_clip's modules.

    Also the cosine of each way's image gradient with the exact one, mean over prompts.
    """
    sets = candidates(prompts, count)
    exact = steer.reward("shapes", device=device, dtype="float32", fused=False)
    truth = _scored(exact, sets, device)
    slopes = [_slope(exact, *one, device) for one in sets[: min(prompts, 16)]]
    found: dict[str, Any] = {}
    for name, (dtype, fused) in WAYS.items():
        if fused == "fp8" and (reason := _no_fp8(device)):
            found[name] = {"absent": reason}
            continue
        reward = steer.reward("shapes", device=device, dtype=dtype, fused=fused)
        found[name] = decisions(_scored(reward, sets, device), truth)
        if fused != "fp8":
            own = torch.stack([_slope(reward, *one, device) for one in sets[: len(slopes)]])
            cosines = torch.cosine_similarity(own, torch.stack(slopes), 1)
            found[name]["gradient_cosine"] = float(cosines.mean())
    return found


def _scored(reward: Any, sets: list[tuple[str, Tensor]], device: torch.device) -> Scores:
    with torch.no_grad():
        rows = [reward(images.to(device), text) for text, images in sets]
    return torch.stack(rows).double().cpu().numpy()


def _slope(reward: Any, text: str, images: Tensor, device: torch.device) -> Tensor:
    leaf = images[:4].to(device).requires_grad_()
    (found,) = torch.autograd.grad(reward(leaf, text).sum(), leaf)
    return found.flatten().double().cpu()


def _no_fp8(device: torch.device) -> str | None:
    from steer_kernels.fp8 import fp8_available  # pyright: ignore[reportMissingImports]

    return None if fp8_available(device) else "this GPU has no FP8 products"
