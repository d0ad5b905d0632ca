"""Which rewards are kin: one backbone, or one kind of training data, and so likely one blind spot.

A family is written `"<backbone>/<data>"`, or `"<backbone>"` where there is no data to name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from steer.core.types import Reward
from steer.core.warn import warn
from steer.rewards.names import expanded
from steer.rewards.parts import rewards_in
from steer.rewards.text import names_in


FAMILIES = {
    "aesthetic": "clip-l/aesthetic",
    "aesthetic-v1": "clip-l/aesthetic",
    "aesthetic-v1-vit_b_16": "clip-b/aesthetic",
    "aesthetic-v1-vit_b_32": "clip-b/aesthetic",
    "aesthetic-v2.5": "siglip/aesthetic",
    "compressibility": "jpeg",
    "cyclereward": "blip/cycle",
    "cyclereward:i2t": "blip/cycle",
    "cyclereward:t2i": "blip/cycle",
    "hpsv2": "clip-h/human",
    "hpsv2.0": "clip-h/human",
    "hpsv2.0-legacy": "clip-h/human",
    "hpsv2.1": "clip-h/human",
    "hpsv2.1-legacy": "clip-h/human",
    "hpsv3": "vlm/human",
    "imagereward": "blip/human",
    "incompressibility": "jpeg",
    "librehps": "vlm/human",
    "librehps:alignment": "vlm/human",
    "librehps:coherence": "vlm/human",
    "librehps:style": "vlm/human",
    "librehps:video": "vlm/human",
    "librehps:video:alignment": "vlm/human",
    "librehps:video:coherence": "vlm/human",
    "librehps:video:style": "vlm/human",
    "librehps:video:temporal": "vlm/human",
    "mps": "clip-h/human",
    "ocr": "ocr",
    "pickscore": "clip-h/human",
    "shapes": "shapes-vit/shapes-votes",
    "shapes-clip": "shapes-vit/shapes-captions",
    "shapes-vqa": "shapes-resnet/shapes-readings",
    "unifiedreward": "vlm/human",
    "unifiedreward:alignment": "vlm/human",
    "unifiedreward:coherence": "vlm/human",
    "unifiedreward:style": "vlm/human",
    "videoreward": "vlm/human",
    "videoreward:mq": "vlm/human",
    "videoreward:ta": "vlm/human",
    "videoreward:vq": "vlm/human",
}
"""By the name of a reward. `human` are people's choices between generated images, `aesthetic` their
ratings of looks, `cycle` comparisons by cycle consistency, `captions` images with their texts. In
the bundled world `votes` are simulated choices between samples, `readings` what the oracle sees in
other ones."""


def family_of(name: str) -> str:
    """The family of a built-in reward; empty for any other name.

    Args:
        name: With its argument where it has one, as `"clip:ViT-H-14:laion2b_s32b_b79k"`.
    """
    kind, _, model = name.partition(":")
    if kind == "clip":
        return f"{_backbone(model.partition(':')[0])}/captions"
    return "vlm" if kind in ("openai", "vqa", "soft-tifa") else FAMILIES.get(name, "")


def families_in(reward: Reward | str) -> set[str]:
    """A reward's own `family` and those of its parts, except of parts of weight 0.

    Args:
        reward: A loaded one; or a text as `steer.reward` takes it, whose names are looked up;
            those of presets stand for their parts.
    """
    if isinstance(reward, str):
        names = (name.removeprefix("augmented:") for name in names_in(expanded(reward)))
        return {family for family in map(family_of, names) if family}
    weights: Any = getattr(reward, "weights", None)
    silent = {n for n, w in weights.items() if not w} if isinstance(weights, Mapping) else set()
    parts = [part for name, part in rewards_in(reward).items() if name not in silent]
    own = str(getattr(reward, "family", None) or "")
    return set().union(*map(families_in, parts), [own] if own else [])


def kinship(family: str, other: str) -> list[str]:
    """What two families share, in words: `["backbone clip-h", "training data human"]`."""
    both = zip(("backbone", "training data"), family.split("/"), other.split("/"), strict=False)
    return [f"{what} {mine}" for what, mine, yours in both if mine == yours]


def warn_of_agreement(names: Sequence[str]) -> None:
    """Warn where rewards whose agreement is asked for share a backbone or training data."""
    for one, other in combinations(names, 2):
        if shared := _shared(one, other):
            warn(
                f"consensus: {one!r} and {other!r} share their {' and their '.join(shared)}, so "
                "that they agree says less; name rewards of different families (docs/rewards.md "
                "lists them)"
            )


def _shared(one: Reward | str, other: Reward | str) -> list[str]:
    """What any family of the one shares with any of the other, in words."""
    pairs = [(a, b) for a in sorted(families_in(one)) for b in sorted(families_in(other))]
    return list(dict.fromkeys(word for pair in pairs for word in kinship(*pair)))


def warn_of_kin(reward: Reward | str, judge: Reward | str) -> None:
    """Warn where a judge shares a backbone or training data with the reward that is optimised."""
    shared = _shared(reward, judge)
    if shared:
        names = [given if isinstance(given, str) else given.name for given in (judge, reward)]
        warn(
            f"judge {names[0]!r} shares its {' and its '.join(shared)} with the reward "
            f"{names[1]!r} that is optimised, and may fall for the same faults: judge by a "
            "reward of another family (docs/rewards.md lists them)"
        )


def _backbone(model: str) -> str:
    """Of an open_clip model's name: `"ViT-H-14-quickgelu"` is `clip-h`."""
    if "siglip" in model.lower():
        return "siglip"
    size = re.match(r"ViT-([A-Za-z]+)", model)
    return f"clip-{(size[1] if size else model).lower()}"
