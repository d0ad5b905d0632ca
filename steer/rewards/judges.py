"""`judge="auto"`: a held-out reward of another family than the one that is optimised."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

from steer.core.types import Reward
from steer.rewards.families import families_in, family_of, kinship


AUTO = "auto"
"""What users write for a judge that is chosen."""

BUNDLED = ("shapes-vqa", "shapes")
"""For rewards of the bundled world, best first; nothing is downloaded."""

PUBLISHED = ("cyclereward", "hpsv2.1", "clip:ViT-B-32:laion2b_s34b_b79k", "aesthetic-v2.5")
"""For all others, best first; each is downloaded where it is not in the cache."""

_log = logging.getLogger("steer")
_T = TypeVar("_T")


def auto_judge(reward: Reward | str) -> str:
    """The first judge of the table that shares neither backbone nor training data with `reward`.

    Tells which in one line of the log `steer`.

    Args:
        reward: What is optimised: a loaded reward, or a text as `steer.reward` takes it.

    Raises:
        ValueError: No part of the reward has a known family, or every judge of the table is kin.
    """
    name = reward if isinstance(reward, str) else reward.name
    families = sorted(families_in(reward))
    if not families:
        raise ValueError(
            f"judge='auto': the family of reward {name!r} is unknown, so none is known to be "
            f"another; name a judge, such as {PUBLISHED[0]!r}, or give the reward a `family`"
        )
    bundled = any(family.startswith("shapes-") for family in families)
    table = BUNDLED if bundled else PUBLISHED
    fit = [j for j in table if not any(kinship(f, family_of(j)) for f in families)]
    if not fit:
        raise ValueError(
            f"judge='auto': every judge of its table ({', '.join(table)}) shares a backbone or "
            f"training data with reward {name!r} ({', '.join(families)}); name a judge yourself"
        )
    where = "it is in the package" if bundled else "its weights are downloaded if not yet here"
    _log.warning(
        "judge='auto' is %r (%s) beside reward %r (%s); %s",
        *(fit[0], family_of(fit[0]), name, ", ".join(families), where),
    )
    return fit[0]


def with_auto(judges: Sequence[_T], reward: Reward | str) -> list[_T | str]:
    """Judges as given, with `auto_judge(reward)` in the place of `"auto"`."""
    return [auto_judge(reward) if _is_auto(judge) else judge for judge in judges]


def _is_auto(judge: object) -> bool:
    return isinstance(judge, str) and judge == AUTO
