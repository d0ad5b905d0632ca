"""Mixtures by name: `"reno"` and `"carinox"`, with published weights, and trios of families."""

from __future__ import annotations


CLIP_H = "clip:ViT-H-14:laion2b_s32b_b79k"
CLIP_H_SCALE = 100.0
"""`exp(logit_scale)` of that model: its published score is this times the cosine."""

VQA = "vqa:Qwen/Qwen2.5-VL-3B-Instruct"

QWEN3_VL = "vqa:Qwen/Qwen3-VL-2B-Instruct"
CLIP_L = "clip:ViT-L-14:laion2b_s32b_b82k"

CATEGORIES = {
    "none": (1.0, 1.0, 1.0),
    "color": (0.40, 1.06, 1.14),
    "shape": (0.95, 1.12, 0.92),
    "texture": (0.90, 1.10, 0.93),
    "2d_spatial": (1.06, 1.02, 1.10),
    "3d_spatial": (0.96, 0.92, 1.43),
    "non_spatial": (1.01, 0.96, 1.17),
    "complex": (0.67, 1.05, 1.06),
    "numeracy": (1.02, 1.05, 0.93),
    "overall": (0.59, 0.94, 1.34),
}
"""CARINOX's multipliers of the HPS, ImageReward and VQA weights by kind of prompt."""


def reno() -> dict[str, float]:
    """ReNO's mixture: 5 HPSv2.1 + 1 ImageReward + 0.05 PickScore + 0.01 CLIP ViT-H/14 logit.

    Eyring et al. 2024 (arXiv:2406.04312), weights as in its code's defaults
    (github.com/ExplainableML/ReNO), whose loss is 9.5 minus this: `5 (1 - HPS) + (2 - ImageReward)
    + 0.05 (30 - PickScore) + 0.01 (100 - CLIP)`. PickScore and CLIP are logits there (100 times
    the cosine). Each model has its own preprocessing here; ReNO gives all of them one shortest-side
    crop. Its regulariser of the noise is the method's, not the reward's.
    """
    return {"hpsv2.1": 5.0, "imagereward": 1.0, "pickscore": 0.05, CLIP_H: 0.01 * CLIP_H_SCALE}


def carinox(*, category: str = "none", vqa: str = VQA) -> dict[str, float]:
    """CARINOX's mixture: 5 (2 HPSv2.1) + 5 (ImageReward + 3) / 6 + 1 VQA probability.

    Kasaei et al. 2025 (arXiv:2509.17458), base weights and rescalings of its code; the additive
    constant 2.5 is left out. Its fourth part, the decompositional alignment score (weight 5), is
    left out too: it needs a language model that takes the prompt apart, and no public checkpoint
    stands for it. The VQA model is the caller's choice; the paper used CLIP-FlanT5 and P("Yes")
    alone. With a model of Qwen's the mixture has a gradient; with another it has none.

    Args:
        category: Kind of prompts, whose multipliers apply: one of `CATEGORIES`.
        vqa: The name of the VQA reward.

    Raises:
        ValueError: An unknown category.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category={category!r}: one of {', '.join(map(repr, CATEGORIES))}")
    hps, image_reward, question = CATEGORIES[category]
    return {
        "hpsv2.1": hps * 5.0 * 2.0,
        "imagereward": image_reward * 5.0 / 6.0,
        vqa: question * 1.0,
    }


def trio(*, vqa: str = QWEN3_VL) -> str:
    """The mean rank of HPSv2.1, CycleReward and a vision-language model's answer.

    Three backbones and three kinds of training data (people's choices, cycle consistency, those of
    a language model): what an ensemble is worth against over-optimisation is the independence of
    its parts' failures. It ranks as the verifier ensemble of Ma et al. 2025 (arXiv:2501.09732)
    does, and has no gradient.

    Args:
        vqa: The name of the VQA reward.
    """
    return f"rank(hpsv2.1,cyclereward,{vqa})"


def trio_standardise(*, vqa: str = QWEN3_VL) -> str:
    """As `trio`, the sum of z-scores in the place of the mean rank: leads count."""
    return f"standardise(hpsv2.1,cyclereward,{vqa})"


def trio_light() -> str:
    """As `trio`, with CLIP ViT-L/14's cosine in the place of the vision-language model."""
    return f"rank(hpsv2.1,cyclereward,{CLIP_L})"
