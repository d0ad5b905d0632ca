"""Rewards written as text, as in a command or a configuration file."""

from __future__ import annotations

import re


def parse_reward(text: str) -> str | dict[str, float]:
    """A reward's name, weights, `"hpsv2=0.7,pickscore=0.01"`, or `"rank(hpsv2,pickscore)"`.

    Raises:
        ValueError: A weight that is not a number.
    """
    if "=" not in text or re.fullmatch(r"\s*\w+\(.*\)\s*", text):
        return text
    weights = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise ValueError(
                f"reward={text!r}: {part.strip()!r} is not name=weight; "
                "write for example 'hpsv2=0.7,clip:ViT-B-32:openai=0.3'"
            ) from None
    return weights
